"""What it costs a prediction to be counted, beside what the whole call of a tiny network costs over gRPC.

    python benchmarks/counting.py [--calls 512] [--turns 60]

Measured is processor time, in turns: of the call over gRPC, caller and server together; of the same handler called
directly, bare (it predicts, and does not even turn errors into statuses) and with all that the server puts around it;
of the meter of a version alone. The least of many short turns is taken, which a neighbour's load disturbs least. Ends
with status 1 where what is around a handler takes over 5 % of the call.
"""

from __future__ import annotations

import argparse
import contextvars
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import onnx
from acme_regression import RegressionTask
from acme_regression.v1 import regression_pb2 as pb
from acme_regression.v1 import regression_pb2_grpc
from onnx import TensorProto, helper, numpy_helper

from luthier.inference.lanes import Cores
from luthier.inference.predictor import Predictor
from luthier.inference.routing import Router
from luthier.inference.served import Served
from luthier.inference.threads import Threads
from luthier.services.interceptor import CallInterceptor
from luthier.services.prediction import typed_handler
from luthier.telemetry.meters import Meters, VersionMeter
from luthier.v1.model_pb2 import ModelVersion

LIMIT = 0.05
FEATURES, HIDDEN = 8, 32
REQUEST = pb.EstimateRequest(model="m", instances=[pb.Instance(features=[0.5] * FEATURES)])


def write_network(directory: Path) -> None:
    """One hidden layer of random weights, as the regression plugin exports one."""
    draw = np.random.default_rng(0)
    weights = {"w1": (FEATURES, HIDDEN), "w2": (HIDDEN,)}
    nodes = [
        helper.make_node("MatMul", ["features", "w1"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["value"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(draw.normal(size=size).astype(np.float32), name) for name, size in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), directory / "model.onnx")
    (directory / "num_features").write_text(str(FEATURES))


class Pool:
    """The one model there is."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def route(self, name: str) -> tuple[Served, None]:
        return self._served, None


@contextmanager
def serving(handler: grpc.GenericRpcHandler) -> Iterator[Callable[[], Any]]:
    """A server, and a call of it."""
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers([handler])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            estimate = regression_pb2_grpc.RegressionServiceStub(channel).Estimate
            yield lambda: estimate(REQUEST)
        server.stop(None).wait()


def bare_handler(predictor: Predictor) -> grpc.GenericRpcHandler:
    """As little as a prediction can be."""

    def estimate(request: pb.EstimateRequest, context: grpc.ServicerContext) -> pb.EstimateResponse:
        predictions = predictor.predict(request.instances)
        return pb.EstimateResponse(model_version="models/m/versions/1", predictions=predictions)

    handler = grpc.unary_unary_rpc_method_handler(
        estimate,
        request_deserializer=pb.EstimateRequest.FromString,
        response_serializer=pb.EstimateResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(RegressionTask.service.full_name, {"Estimate": handler})


class Details(NamedTuple):
    """What grpc tells interceptors."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...]


class Context:
    """As much of a call's context as one that succeeds asks for."""

    def time_remaining(self) -> float:
        return 1.0

    def is_active(self) -> bool:
        return True

    def code(self) -> None:
        return None


def directly(handler: grpc.GenericRpcHandler, interceptor: grpc.ServerInterceptor | None = None) -> Callable[[], Any]:
    """A call of the handler as grpc makes it, in a context of its own, and no more of grpc."""
    details = Details(f"/{RegressionTask.service.full_name}/Estimate", (("user-agent", "benchmark"),))
    find = handler.service if interceptor is None else lambda d: interceptor.intercept_service(handler.service, d)

    def call() -> Any:
        context = contextvars.Context()
        found = context.run(find, details)
        return context.run(found.unary_unary, REQUEST, Context())

    return call


def cost(call: Callable[[], Any], calls: int) -> float:
    """Processor time of a call in microseconds."""
    began = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - began) / calls * 1e6


def watched(meter: VersionMeter) -> None:
    """What a prediction does to be counted by its version, and no more."""
    with meter.watch(1) as watch:
        watch.begin(time.perf_counter())
        watch.computed([time.perf_counter(), time.perf_counter(), time.perf_counter()], 1)
    meter.executed(1, 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=512, help="of a turn; what they leave is counted every 256 [512]")
    parser.add_argument("--turns", type=int, default=60)
    arguments = parser.parse_args()
    task, meters = RegressionTask(), Meters()
    meter = meters.version("m", "1")
    with tempfile.TemporaryDirectory() as folder:
        write_network(Path(folder))
        bare = bare_handler(Predictor(task, Path(folder)))
        version = ModelVersion(name="models/m/versions/1")
        with Threads(1, most=1) as threads, serving(bare) as over_grpc:
            predictor = Predictor(task, Path(folder), meter=meter)
            served = Served(version, task, predictor, meter, cores=Cores(1, threads), most_waiting=1)
            # Nothing is kept and there is no rollout: neither journal nor shadows are asked.
            router = Router(Pool(served), None, None)  # type: ignore[arg-type]
            ways = {
                "over gRPC": over_grpc,
                "handler alone": directly(bare),
                "handler with all around it": directly(typed_handler(router, task), CallInterceptor(meters)),
                "meter alone": lambda: watched(meter),
            }
            turns = [[cost(call, arguments.calls) for call in ways.values()] for _ in range(arguments.turns)]
    least = dict(zip(ways, map(min, zip(*turns, strict=True)), strict=True))
    for name, microseconds in least.items():
        print(f"{name}: {microseconds:.1f} us")
    part = (least["handler with all around it"] - least["handler alone"]) / least["over gRPC"]
    print(f"what is around a handler: {part:.1%} of the call, limit {LIMIT:.0%}")
    return 0 if part <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
