"""The Open Inference Protocol through a real server: by plain stubs, and by Triton's own client tools as they are."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from acme_regression.v1 import regression_pb2, regression_pb2_grpc

from luthier.oip.v2 import open_inference_pb2 as pb
from luthier.oip.v2 import open_inference_pb2_grpc as oip_grpc
from luthier.tasks.recommendation.v1 import recommendation_pb2, recommendation_pb2_grpc
from luthier.v1 import dataset_pb2
from support import ROOT, Server, create_dataset, fine_tune, interactions, serving, status_of

TRITON = ROOT / ".tools" / "triton"
ROWS = np.array([[0.5, 0.5], [-1.0, 0.25], [0.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with `line`, which takes numbers, and `shop`, which takes strings."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    points = [(draw.uniform(-1, 1), draw.uniform(-1, 1)) for _ in range(400)]
    (folder / "line.csv").write_text("\n".join(["a,b,y", *(f"{a},{b},{2 * a - b}" for a, b in points)]))
    with serving(tmp_path_factory.mktemp("home")) as server:
        columns = {"features": "a,b", "target": "y"}
        create_dataset(server, "line", "acme-regression", {"_": folder / "line.csv"}, columns=columns)
        fine_tune(server, "line", "acme-regression", "line", regression_pb2.Config(epochs=100))
        split = dataset_pb2.Split(method="per-user", fractions=[0.25], seed=1)
        create_dataset(server, "shop", "recommendation", {"_": interactions(folder / "shop.csv")}, split=split)
        config = recommendation_pb2.Config(algorithm=recommendation_pb2.ALGORITHM_EASE, regularization=10)
        fine_tune(server, "shop", "recommendation", "shop", config)
        yield server


@pytest.fixture
def stub(models: Server) -> oip_grpc.GRPCInferenceServiceStub:
    return models.stub(oip_grpc.GRPCInferenceServiceStub)


@pytest.fixture
def expected(models: Server) -> list[float]:
    """What the task's own service answers for ROWS."""
    instances = [regression_pb2.Instance(features=row) for row in ROWS]
    answer = models.stub(regression_pb2_grpc.RegressionServiceStub).Estimate(
        regression_pb2.EstimateRequest(model="line", instances=instances)
    )
    return [prediction.value for prediction in answer.predictions]


def request(model: str = "line", *, raw: bool = True, rows: np.ndarray = ROWS, **fields: Any) -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name=model, **fields)
    tensor = asked.inputs.add(name="features", datatype="FP32", shape=rows.shape)
    if raw:
        asked.raw_input_contents.append(rows.tobytes())
    else:
        tensor.contents.fp32_contents.extend(rows.ravel())
    return asked


def strings(name: str, values: list[list[str]], model: str = "shop.instances") -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name=model)
    tensor = asked.inputs.add(name=name, datatype="BYTES", shape=[len(values), len(values[0])])
    tensor.contents.bytes_contents.extend(value.encode() for row in values for value in row)
    return asked


def test_raw_tensors_are_answered_raw(stub: oip_grpc.GRPCInferenceServiceStub, expected: list[float]) -> None:
    answer = stub.ModelInfer(request(id="seven"))
    assert (answer.model_name, answer.model_version, answer.id) == ("line", "1", "seven")
    assert [(o.name, o.datatype, [*o.shape]) for o in answer.outputs] == [("value", "FP32", [3])]
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == pytest.approx(expected, abs=1e-6)


def test_typed_tensors_are_answered_typed(stub: oip_grpc.GRPCInferenceServiceStub, expected: list[float]) -> None:
    answer = stub.ModelInfer(request(raw=False, model_version="1"))
    assert not answer.raw_output_contents
    assert list(answer.outputs[0].contents.fp32_contents) == pytest.approx(expected, abs=1e-6)


def test_strings_go_through_the_codec(models: Server, stub: oip_grpc.GRPCInferenceServiceStub) -> None:
    answer = stub.ModelInfer(strings("user", [["u1"], ["u2"]]))
    [output] = answer.outputs
    assert (output.name, output.datatype, [*output.shape]) == ("prediction", "BYTES", [2, 1])
    typed = models.stub(recommendation_pb2_grpc.RecommendationServiceStub).Recommend(
        recommendation_pb2.RecommendRequest(
            model="shop", instances=[recommendation_pb2.Instance(user=user) for user in ("u1", "u2")]
        )
    )
    found = [[item["item"] for item in json.loads(text)["items"]] for text in output.contents.bytes_contents]
    assert found == [[item.item for item in prediction.items] for prediction in typed.predictions]
    assert len(found[0]) == 10


def test_repeated_fields_are_rows_of_any_length(models: Server, stub: oip_grpc.GRPCInferenceServiceStub) -> None:
    asked = strings("history", [["i1", "i2"]])
    asked.inputs.add(name="k", datatype="INT32", shape=[1, 1]).contents.int_contents.append(3)
    [text] = stub.ModelInfer(asked).outputs[0].contents.bytes_contents
    typed = models.stub(recommendation_pb2_grpc.RecommendationServiceStub).Recommend(
        recommendation_pb2.RecommendRequest(
            model="shop", instances=[recommendation_pb2.Instance(history=["i1", "i2"], k=3)]
        )
    )
    assert [item["item"] for item in json.loads(text)["items"]] == [item.item for item in typed.predictions[0].items]


def test_models_describe_themselves(stub: oip_grpc.GRPCInferenceServiceStub) -> None:
    graph = stub.ModelMetadata(pb.ModelMetadataRequest(name="line"))
    assert (graph.name, [*graph.versions], graph.platform) == ("line", ["1"], "onnx_onnxv1")
    assert [(t.name, t.datatype, [*t.shape]) for t in graph.inputs] == [("features", "FP32", [-1, 2])]
    assert [(t.name, t.datatype, [*t.shape]) for t in graph.outputs] == [("value", "FP32", [-1])]
    codec = stub.ModelMetadata(pb.ModelMetadataRequest(name="shop.instances"))
    assert codec.platform == "luthier_recommendation"
    assert {(t.name, t.datatype, *t.shape) for t in codec.inputs} == {
        ("user", "BYTES", -1, 1),
        ("history", "BYTES", -1, -1),
        ("k", "INT32", -1, 1),
        ("include_seen", "BOOL", -1, 1),
        ("allow", "BYTES", -1, -1),
        ("deny", "BYTES", -1, -1),
        ("allow_unknown", "BOOL", -1, 1),
    }
    config = stub.ModelConfig(pb.ModelConfigRequest(name="line", version="1")).config
    assert (config.max_batch_size, [*config.input[0].dims], config.input[0].data_type) == (1024, [2], pb.TYPE_FP32)
    server = stub.ServerMetadata(pb.ServerMetadataRequest())
    assert server.name == "luthier"
    assert "binary_tensor_data" in server.extensions
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="line", version="1")).ready
    assert not stub.ModelReady(pb.ModelReadyRequest(name="line", version="2")).ready


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        (request("nobody"), "NOT_FOUND", "models/nobody/aliases/production was not found"),
        (request("line", model_version="9"), "NOT_FOUND", "models/line/versions/9 was not found"),
        (request("line", model_version="x"), "INVALID_ARGUMENT", "'line/x' is not a model's name"),
        (request("line@production", model_version="1"), "INVALID_ARGUMENT", "model_name: 'line@production' is no id"),
        (request("../line"), "INVALID_ARGUMENT", "'../line' is not a model's name"),
        (request(rows=ROWS[:, :1]), "INVALID_ARGUMENT", "inputs.features: has the shape [3, 1], not [-1, 2]"),
        (request(rows=ROWS[:0]), "INVALID_ARGUMENT", "inputs: 0 rows in one request; from 1 to 1024 are taken"),
        (pb.ModelInferRequest(model_name="line"), "INVALID_ARGUMENT", "inputs.features: is missing"),
        (pb.ModelInferRequest(model_name="shop.instances"), "INVALID_ARGUMENT", "inputs: 0 rows in one request"),
        (strings("user", [["nobody"]]), "INVALID_ARGUMENT", "instances[0].user: the model does not know the user"),
        (strings("name", [["u1"]]), "INVALID_ARGUMENT", "inputs.name: is not known; the model takes user, history"),
        (
            request(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="logits")]),
            "INVALID_ARGUMENT",
            "outputs.logits: is not known; the model gives value",
        ),
        (
            request(parameters={"timeout": pb.InferParameter(string_param="1s")}),
            "INVALID_ARGUMENT",
            "parameters.timeout: is no number of microseconds",
        ),
        (
            request(parameters={"sequence_id": pb.InferParameter(int64_param=1)}),
            "INVALID_ARGUMENT",
            "parameters.sequence_id: no model keeps a state",
        ),
    ],
)
def test_what_is_wrong_is_named(
    stub: oip_grpc.GRPCInferenceServiceStub, asked: pb.ModelInferRequest, code: str, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(asked)
    assert refused.value.code().name == code
    assert message in status_of(refused.value).message


def test_what_the_graph_cannot_compute_is_the_callers_mistake(stub: oip_grpc.GRPCInferenceServiceStub) -> None:
    """An item that is not in the catalogue, by its number."""
    inputs = {t.name: t for t in stub.ModelMetadata(pb.ModelMetadataRequest(name="shop")).inputs}
    asked = pb.ModelInferRequest(model_name="shop")
    for name, tensor in inputs.items():
        shape = [1 if n < 0 else n for n in tensor.shape]
        one = asked.inputs.add(name=name, datatype=tensor.datatype, shape=shape)
        count = int(np.prod(shape))
        if tensor.datatype == "INT64":
            one.contents.int64_contents.extend([1 if name == "k" else 10**9] * count)
        elif tensor.datatype == "BOOL":
            one.contents.bool_contents.extend([False] * count)
        else:
            one.contents.fp32_contents.extend([0] * count)
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(asked)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "inputs: the graph cannot compute them" in status_of(refused.value).message
    assert "/" not in status_of(refused.value).message


@pytest.mark.parametrize("microseconds", [0, 10_000_000])
def test_a_timeout_that_suffices_changes_nothing(
    stub: oip_grpc.GRPCInferenceServiceStub, expected: list[float], microseconds: int
) -> None:
    answer = stub.ModelInfer(request(parameters={"timeout": pb.InferParameter(int64_param=microseconds)}))
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_stream_goes_on_after_what_fails(stub: oip_grpc.GRPCInferenceServiceStub, expected: list[float]) -> None:
    asked = [request(id="a"), request("nobody", id="b"), request(id="c")]
    first, failed, last = stub.ModelStreamInfer(iter(asked))
    for answer, id in ((first, "a"), (last, "c")):
        assert (answer.error_message, answer.infer_response.id) == ("", id)
        values = np.frombuffer(answer.infer_response.raw_output_contents[0], np.float32)
        assert values.tolist() == pytest.approx(expected, abs=1e-6)
    assert failed.error_message.startswith("models/nobody/aliases/production was not found")
    assert failed.infer_response.id == "b"


def run(*command: str | Path) -> str:
    """What a program of the environment of Triton's tools prints."""
    library = next(TRITON.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"), TRITON)
    environment = os.environ | {"LD_LIBRARY_PATH": str(library), "PYTHONPATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    if "libb64" in done.stderr:
        pytest.skip("perf_analyzer needs Debian's package libb64-0d")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


tools = pytest.mark.skipif(not (TRITON / ".made").exists(), reason="Triton's tools are not installed; `make test` does")


@tools
def test_tritonclient_works_as_it_is(models: Server, expected: list[float]) -> None:
    found = json.loads(run(TRITON / "bin" / "python", ROOT / "tests/e2e/triton/calls.py", models.address))
    plain, aio = found["sync"], found["aio"]
    assert plain["live"]
    assert plain["ready"]
    assert plain["model_ready"]
    assert not plain["stranger_ready"]
    assert plain["infer"] == plain["async_infer"] == aio["infer"] == pytest.approx(expected, abs=1e-6)
    assert plain["stream"] == aio["stream"] == [pytest.approx([value], abs=1e-6) for value in expected]
    assert "models/nobody/aliases/production was not found" in plain["stream_error"]
    assert plain["version"]["model_version"] == "1"
    assert plain["version"]["id"] == "seven"
    assert plain["server"]["name"] == "luthier"
    assert plain["metadata"]["inputs"] == [{"name": "features", "datatype": "FP32", "shape": ["-1", "2"]}]
    assert plain["config"]["config"]["max_batch_size"] == 1024
    assert [len(json.loads(text)["items"]) for text in plain["strings"]] == [10, 10]
    assert plain["error"] == ["StatusCode.INVALID_ARGUMENT", "inputs.features: has the shape [3, 1], not [-1, 2]"]
    assert {(m["name"], m["version"], m["state"]) for m in plain["index"]["models"]} == {
        ("line", "1", "READY"),
        ("shop", "1", "READY"),
    }
    assert not plain["unloaded"]
    assert plain["loaded"]
    assert plain["override"][0] == "StatusCode.INVALID_ARGUMENT"
    assert "only bundles that were published" in plain["override"][1]
    [statistics] = plain["statistics"]["model_stats"]
    assert (statistics["name"], statistics["version"]) == ("line", "1")


@tools
def test_perf_analyzer_sweeps_over_concurrencies(models: Server, stub: oip_grpc.GRPCInferenceServiceStub) -> None:
    printed = run(
        *(TRITON / "bin" / "perf_analyzer", "-m", "line", "-u", models.address, "-i", "grpc"),
        *("--concurrency-range", "1:3", "--measurement-interval", "500", "--max-trials", "3"),
        *("--stability-percentage", "99"),
    )
    found = re.findall(r"Concurrency: (\d+), throughput: ([\d.]+) infer/sec, latency (\d+) usec", printed)
    assert [concurrency for concurrency, _, _ in found] == ["1", "2", "3"], printed
    assert all(float(throughput) > 0 for _, throughput, _ in found)
    [statistics] = stub.ModelStatistics(pb.ModelStatisticsRequest(name="line")).model_stats
    assert statistics.inference_count > sum(float(throughput) for _, throughput, _ in found) / 2
