"""Messages and metadata that are larger, deeper or stranger than any that a client means."""

from __future__ import annotations

import sqlite3
import struct
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import any_pb2, struct_pb2
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from luthier.oip.v2 import open_inference_pb2 as oip
from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as pb_grpc
from luthier.v1 import base_pb2, dataset_pb2, model_pb2, prediction_pb2
from luthier_client import Client
from support import Server, interactions, serving, status_of
from wire import nested

MOST_GROWTH_MB = 320
"""Twenty times the largest message."""
OK = grpc.StatusCode.OK


@pytest.fixture(scope="module")
def shop(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    path = interactions(tmp_path_factory.mktemp("data") / "large-shop.csv")
    with Client(server.address) as client:
        client.create_dataset("large-shop", path, task="recommendation").result(60)
        config = {"algorithm": "ALGORITHM_EASE", "regularization": 10}
        client.fine_tune("large-shop", task="recommendation", dataset="large-shop", config=config).result(60)
    return server


def peak_mb(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def ended(server: Server, method: str, data: bytes, metadata: Any = ()) -> tuple[grpc.StatusCode, str]:
    try:
        server.channel.unary_unary(method)(data, metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return OK, ""


PREDICT = "/luthier.v1.PredictionService/Predict"
RECOMMEND = "/luthier.tasks.recommendation.v1.RecommendationService/Recommend"
INFER = "/inference.GRPCInferenceService/ModelInfer"
FINE_TUNE = "/luthier.v1.ModelService/FineTune"
CREATE = "/luthier.v1.DatasetService/CreateDataset"
IMPORT = "/luthier.v1.BaseService/ImportBase"
LIST = "/luthier.v1.ModelService/ListModels"


def works(server: Server) -> None:
    request = pb.RecommendRequest(model="large-shop", instances=[pb.Instance(user="u1")])
    assert server.stub(pb_grpc.RecommendationServiceStub).Recommend(request).predictions[0].items


def test_messages_that_are_too_large(shop: Server) -> None:
    before = peak_mb(shop)
    for _ in range(5):
        code, _said = ended(shop, PREDICT, b"\x0a" + b"\xff\xff\xff\x08" + b"a" * (16 * 2**20 + 1))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert peak_mb(shop) - before < MOST_GROWTH_MB
    works(shop)


@pytest.mark.parametrize("method", [PREDICT, RECOMMEND])
def test_a_million_instances(shop: Server, method: str) -> None:
    """Two bytes each: as many as a message holds of them."""
    kind = prediction_pb2.PredictRequest if method == PREDICT else pb.RecommendRequest
    data = kind(model="large-shop").SerializeToString() + b"\x12\0" * 1_000_000
    before = peak_mb(shop)
    code, said = ended(shop, method, data)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "instances: 1000000 in one call; at most 1024 are taken" in said
    print(f"a million instances: the peak grew by {peak_mb(shop) - before:.0f} MB")
    assert peak_mb(shop) - before < MOST_GROWTH_MB
    works(shop)


def test_many_of_other_things(shop: Server) -> None:
    before = peak_mb(shop)
    data = dataset_pb2.CreateDatasetRequest(
        dataset_id="n", task="recommendation", files=[dataset_pb2.DatasetFile()] * 300_000
    )
    code, said = ended(shop, CREATE, data.SerializeToString())
    assert (code, "files: 300000" in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    weights = base_pb2.ImportBaseRequest(base_id="n", architecture="m", files=[base_pb2.ImportedFile()] * 300_000)
    code, said = ended(shop, IMPORT, weights.SerializeToString())
    assert (code, "files: 300000" in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    inputs = oip.ModelInferRequest(model_name="large-shop").SerializeToString() + b"\x2a\0" * 1_000_000
    assert ended(shop, INFER, inputs)[0] is grpc.StatusCode.INVALID_ARGUMENT
    one = pb.RecommendRequest(model="large-shop", instances=[pb.Instance(history=["i1"] * 1_000_000)])
    assert ended(shop, RECOMMEND, one.SerializeToString())[0] in (OK, grpc.StatusCode.INVALID_ARGUMENT)
    print(f"many of other things: the peak grew by {peak_mb(shop) - before:.0f} MB")
    assert peak_mb(shop) - before < MOST_GROWTH_MB
    works(shop)


def test_deep_messages(shop: Server) -> None:
    value = struct_pb2.Value(number_value=1)
    for _ in range(40):
        value = struct_pb2.Value(list_value=struct_pb2.ListValue(values=[value]))
    packed = any_pb2.Any()
    packed.Pack(value)
    for _ in range(50):
        outer = any_pb2.Any()
        outer.Pack(packed)
        packed = outer
    request = prediction_pb2.PredictRequest(model="large-shop", instances=[packed])
    code, said = ended(shop, PREDICT, request.SerializeToString())
    assert (code, "instances[0]: a google.protobuf.Any" in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    tune = model_pb2.FineTuneRequest(
        model_id="deep", task="recommendation", dataset="datasets/large-shop", config=packed
    )
    code, said = ended(shop, FINE_TUNE, tune.SerializeToString())
    assert (code, "config: " in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    for levels in (90, 101, 10_000, 100_000):
        for number in (1, 2, 3):
            code, _ = ended(shop, PREDICT, nested(number, levels))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
    works(shop)


def test_bytes_that_are_no_message(shop: Server) -> None:
    for data in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", b"\x0b" * 1000, b"\x0a\x03\xed\xa0\x80"):
        for method in (PREDICT, INFER, FINE_TUNE):
            with pytest.raises(grpc.RpcError) as caught:
                shop.channel.unary_unary(method)(data)
            assert status_of(caught.value).code == code_pb2.INVALID_ARGUMENT
    for method in ("/luthier.v1.DatasetService/UploadFiles", "/luthier.v1.PredictionService/StreamPredict"):
        with pytest.raises(grpc.RpcError) as caught:
            list(shop.channel.stream_stream(method)(iter([b"\xff"])))
        assert status_of(caught.value).code == code_pb2.INVALID_ARGUMENT
        assert caught.value.details() == "the bytes are no message of this method"
    assert not [line for line in shop.log if "Exception deserializing" in line]


def test_metadata_that_is_too_much(shop: Server) -> None:
    assert ended(shop, LIST, b"", [("x-large", "a" * 2**20)])[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    many = [(f"x-{number}", "a") for number in range(5000)]
    assert ended(shop, LIST, b"", many)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ended(shop, LIST, b"", [("x-same", "a")] * 100)[0] is OK
    assert ended(shop, LIST, b"", [("x-strange-bin", bytes(range(256)))])[0] is OK
    works(shop)


def test_numbers_that_are_none(shop: Server) -> None:
    """Not a number, endless, negative and beyond all bounds, where a number is asked for."""
    tune = {"model_id": "n", "task": "recommendation", "dataset": "datasets/large-shop"}
    for field, value in (("parity_tolerance", float("nan")), ("parity_tolerance", float("inf")), ("seed", -1)):
        code, said = ended(shop, FINE_TUNE, model_pb2.FineTuneRequest(**tune, **{field: value}).SerializeToString())
        assert (code, field in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    config = pb.Config(regularization=float("nan"), factors=-(2**31))
    request = model_pb2.FineTuneRequest(**tune)
    request.config.Pack(config)
    code, said = ended(shop, FINE_TUNE, request.SerializeToString())
    assert (code, "config.regularization" in said, "config.factors" in said) == (
        grpc.StatusCode.INVALID_ARGUMENT, True, True,
    )  # fmt: skip
    assert ended(shop, LIST, model_pb2.ListModelsRequest(page_size=-1).SerializeToString())[0] is (
        grpc.StatusCode.INVALID_ARGUMENT
    )
    for size in (-1, -(2**31), 2**31 - 1):
        code, _ = ended(
            shop,
            RECOMMEND,
            pb.RecommendRequest(model="large-shop", instances=[pb.Instance(user="u1", k=size)]).SerializeToString(),
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    infer = oip.ModelInferRequest(model_name="large-shop.instances")
    for shape in ([-1, 1], [2**62, 4], [0, 2**62], [2**32, 2**32]):
        del infer.inputs[:]
        infer.inputs.add(name="user", datatype="BYTES", shape=shape)
        infer.raw_input_contents[:] = [struct.pack("<I", 2**31) + b"u1"]
        assert ended(shop, INFER, infer.SerializeToString())[0] is grpc.StatusCode.INVALID_ARGUMENT
    works(shop)


def test_durations_out_of_range(shop: Server) -> None:
    """Each ends at once: with the operation as it is, or with why there is none."""
    stub = shop.stub(operations_pb2_grpc.OperationsStub)
    name = stub.ListOperations(operations_pb2.ListOperationsRequest(page_size=1)).operations[0].name
    for seconds, nanos in ((2**63 - 1, 0), (-(2**63), -5), (0, -(2**31)), (1, 2**31 - 1)):
        request = operations_pb2.WaitOperationRequest(name=name)
        request.timeout.seconds, request.timeout.nanos = seconds, nanos
        assert stub.WaitOperation(request, timeout=10).name == name


def test_health_waits_for_no_call_that_waits_for_the_database(tmp_path: Path) -> None:
    with serving(tmp_path, "--control-threads", "2", "--jobs", "0") as server:
        name = "operations/" + "0" * 32
        cancel = server.stub(operations_pb2_grpc.OperationsStub).CancelOperation
        with sqlite3.connect(tmp_path / "luthier.db") as held:
            held.execute("BEGIN IMMEDIATE")
            calls = [cancel.future(operations_pb2.CancelOperationRequest(name=name), timeout=60) for _ in range(20)]
            time.sleep(0.3)
            assert not any(call.done() for call in calls)
            check = server.stub(health_pb2_grpc.HealthStub).Check
            assert check(health_pb2.HealthCheckRequest(), timeout=1).status == health_pb2.HealthCheckResponse.SERVING
            held.rollback()
        for call in calls:
            assert call.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)
