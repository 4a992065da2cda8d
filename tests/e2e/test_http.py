"""HTTP on a port of its own: the Connect protocol, and the Open Inference Protocol's REST form."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2

from luthier.database import Database
from luthier.store import Store
from luthier.tasks.recommendation.v1 import recommendation_pb2, recommendation_pb2_grpc
from luthier.v1 import (
    dataset_pb2,
    model_pb2,
    model_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
)
from over_http import Answer, address_of, ask, call
from published import publish
from scrapes import lines, wait_for_lines
from support import ROOT, Server, children, create_dataset, fine_tune, interactions, serving

RECOMMEND = "luthier.tasks.recommendation.v1.RecommendationService/Recommend"
ESTIMATE = "acme_regression.v1.RegressionService/Estimate"
LIST = "luthier.v1.ModelService/ListModels"
WATCH = "luthier.v1.OperationService/WatchOperation"
MOST = 2**20
TRITON = ROOT / ".tools" / "triton"
PAGE = "https://shop.example"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with `shop`, which was tuned, and `table`, of a stranger's task, which gives 7."""
    home = tmp_path_factory.mktemp("home")
    store, database = Store(home), Database(f"sqlite:///{home / 'luthier.db'}")
    database.migrate()
    publish(database, store, "table", 7)
    database.close()
    flags = ("--http-listen", "127.0.0.1:0", "--max-request-bytes", str(MOST), "--http-origins", json.dumps([PAGE]))
    with serving(home, *flags) as server:
        split = dataset_pb2.Split(method="per-user", fractions=[0.25], seed=1)
        create_dataset(server, "shop", "recommendation", {"_": interactions(home / "shop.csv")}, split=split)
        config = recommendation_pb2.Config(algorithm=recommendation_pb2.ALGORITHM_EASE, regularization=10)
        fine_tune(server, "shop", "recommendation", "shop", config)
        yield server


@pytest.fixture(scope="module")
def address(models: Server) -> str:
    return address_of(models)


def test_json_gets_what_grpc_gets(models: Server, address: str) -> None:
    asked = {"model": "shop", "instances": [{"user": "u1", "k": 3}, {"history": ["i1"], "includeSeen": True}]}
    answer = call(address, RECOMMEND, asked, connect_protocol_version="1")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert "server" not in answer.headers
    stub = models.stub(recommendation_pb2_grpc.RecommendationServiceStub)
    request = json_format.ParseDict(asked, recommendation_pb2.RecommendRequest())
    same = json_format.Parse(answer.body, recommendation_pb2.RecommendResponse())
    assert same.predictions == stub.Recommend(request).predictions
    assert same.model_version == "models/shop/versions/1"


def test_the_wire_format_gets_it_too(models: Server, address: str) -> None:
    request = task_pb2.GetTaskRequest(name="tasks/recommendation")
    answer = ask(
        address, "/luthier.v1.TaskService/GetTask", request.SerializeToString(), content_type="application/proto"
    )
    assert (answer.status, answer.headers["content-type"]) == (200, "application/proto")
    expected = models.stub(task_pb2_grpc.TaskServiceStub).GetTask(request)
    assert task_pb2.Task.FromString(answer.body) == expected


def test_a_strangers_service_is_there(address: str) -> None:
    answer = call(address, ESTIMATE, {"model": "table", "instances": [{"features": [0]}]})
    assert answer.json["predictions"] == [{"value": 7.0}]


def test_any_is_read_and_written_by_its_type(address: str) -> None:
    instance = {"@type": "type.googleapis.com/acme_regression.v1.Instance", "features": [0]}
    answer = call(address, "luthier.v1.PredictionService/Predict", {"model": "table", "instances": [instance]})
    [prediction] = answer.json["predictions"]
    assert prediction == {"@type": "type.googleapis.com/acme_regression.v1.Prediction", "value": 7.0}


def test_errors_are_those_of_grpc(address: str) -> None:
    answer = call(address, RECOMMEND, {"model": "nobody", "instances": [{"user": "u1"}]}, x_request_id="seven")
    assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert "models/nobody/aliases/production was not found" in answer.json["message"]
    assert answer.headers["x-request-id"] == answer.headers["trailer-x-request-id"] == "seven"
    details = {detail["type"]: detail for detail in answer.json["details"]}
    assert details["google.rpc.ErrorInfo"]["debug"]["reason"] == "NOT_FOUND"
    value = details["google.rpc.RequestInfo"]["value"]
    raw = base64.b64decode(value + "=" * (-len(value) % 4))
    assert error_details_pb2.RequestInfo.FromString(raw).request_id == "seven"


@pytest.mark.parametrize(
    ("body", "field", "why"),
    [
        ("{", "body", "is no JSON"),
        ("[1]", "body", "is no JSON object"),
        ("", "body", "is no JSON object"),
        ("null", "body", "is no JSON object"),
        ('{"model": 1}', "model", "expected string"),
        ('{"modell": "shop"}', "modell", "there is no such field"),
        ('{"model": "shop", "model": "shop"}', "body", "duplicate key model"),
        ('{"instances": [{}, {"k": "many"}]}', "instances.k", "invalid literal for int"),
        ('{"instances": [{"history": [null]}]}', "instances[0].history[0]", "null is not allowed"),
        ('{"instances": {}}', "instances", "repeated field"),
        ('{"a":' * 100_000, "body", "is no JSON"),
        ('{"model": ' + "9" * 5000 + "}", "body", "is no JSON"),
        (b'{"\xff\xfe', "body", "is no JSON"),
    ],
)
def test_what_is_wrong_with_json_is_named(address: str, body: str | bytes, field: str, why: str) -> None:
    answer = ask(address, f"/{RECOMMEND}", body, content_type="application/json")
    assert (answer.status, answer.json["code"]) == (400, "invalid_argument"), answer.body[:300]
    [(named, said)] = answer.fields().items()
    assert (named, why in said) == (field, True), (named, said)
    assert len(said) < 400


def test_what_is_wrong_with_values_is_named(address: str) -> None:
    answer = call(address, RECOMMEND, {"model": "shop", "instances": [{"user": "u1"}, {"user": "nobody"}]})
    assert answer.status == 400
    assert [*answer.fields()] == ["instances[1].user"]


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/grpc", "application/connect+json"])
def test_other_content_types_are_refused(address: str, content_type: str) -> None:
    answer = ask(address, f"/{RECOMMEND}", b"{}", **({"content_type": content_type} if content_type else {}))
    assert (answer.status, answer.headers["accept-post"]) == (415, "application/json, application/proto")
    assert "takes application/json" in answer.json["message"]


def test_parameters_of_a_content_type_change_nothing(address: str) -> None:
    assert ask(address, f"/{LIST}", b"{}", content_type="application/json; charset=utf-8").status == 200


@pytest.mark.parametrize(
    "path", ["/", "/luthier.v1.ModelService/Nothing", "/nobody.Service/Call", f"/{LIST}/", "/v2/x"]
)
def test_what_is_not_there_is_404(address: str, path: str) -> None:
    assert ask(address, path, "{}").status == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_methods_are_posted_to(address: str, method: str) -> None:
    answer = ask(address, f"/{LIST}", method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_other_versions_of_the_protocol_are_refused(address: str) -> None:
    answer = call(address, LIST, {}, connect_protocol_version="2")
    assert (answer.status, [*answer.fields()]) == (400, ["connect-protocol-version"])


@pytest.mark.parametrize("size", [MOST + 1, 3 * MOST, 6 * MOST])
def test_too_large_a_request_is_413(address: str, size: int) -> None:
    try:
        answer = ask(address, f"/{RECOMMEND}", b" " * size, content_type="application/json")
    except (BrokenPipeError, ConnectionResetError):
        # Beyond a few times the limit nothing more is read.
        assert size > 4 * MOST
        return
    assert (answer.status, answer.json["code"]) == (413, "resource_exhausted")


def test_json_may_not_grow_into_more_than_the_limit(address: str) -> None:
    """A float of two characters has four bytes."""
    body = '{"model": "table", "instances": [{"features": [' + ",".join(["1"] * (MOST // 2 - 100)) + "]}]}"
    assert len(body) < MOST
    assert ask(address, f"/{ESTIMATE}", body).status == 413


def test_gzip_is_taken(address: str) -> None:
    body = gzip.compress(json.dumps({"model": "shop", "instances": [{"user": "u1"}]}).encode())
    answer = ask(address, f"/{RECOMMEND}", body, content_type="application/json", content_encoding="gzip")
    assert answer.status == 200


def test_a_bomb_of_gzip_is_refused_before_it_is_whole(models: Server, address: str) -> None:
    bomb = gzip.compress(b" " * (1000 * MOST), compresslevel=9)
    assert len(bomb) < 1.1 * MOST
    before = _peak_of_front(models)
    answer = ask(address, f"/{RECOMMEND}", bomb[: MOST - 1], content_type="application/json", content_encoding="gzip")
    assert (answer.status, answer.json["code"]) == (413, "resource_exhausted")
    assert _peak_of_front(models) - before < 32 * 2**20


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [("gzip", b"{}", 400), ("gzip", gzip.compress(b"{}")[:-4], 400), ("br", b"{}", 501), ("deflate", b"{}", 501)],
)
def test_other_compressions_are_refused(address: str, encoding: str, body: bytes, status: int) -> None:
    answer = ask(address, f"/{LIST}", body, content_type="application/json", content_encoding=encoding)
    assert answer.status == status
    assert status != 501 or answer.headers["accept-encoding"] == "gzip, identity"


def test_a_deadline_ends_a_call(models: Server, address: str) -> None:
    started = time.monotonic()
    message = {"name": _operation(models), "timeout": "30s"}
    answer = call(address, "google.longrunning.Operations/WaitOperation", message, connect_timeout_ms="300")
    assert (answer.status, answer.json["code"]) == (504, "deadline_exceeded")
    assert 0.25 < time.monotonic() - started < 5
    bad = call(address, LIST, {}, connect_timeout_ms="1e3")
    assert (bad.status, [*bad.fields()]) == (400, ["connect-timeout-ms"])


def test_a_flood_of_headers_is_refused(address: str) -> None:
    assert call(address, LIST, {}, **{f"x-{i}": "y" * 1000 for i in range(12)}).status == 431
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        assert call(address, LIST, {}, **{f"x-{i}": "y" * 1000 for i in range(60)}).status in (400, 431)
    assert call(address, LIST, {}).status == 200


def test_headers_go_along_as_metadata(address: str) -> None:
    """What is not ASCII, or no base64 where that is due, is refused and not cut."""
    assert call(address, LIST, {}, **{"x-name": "Jos\xe9"}).fields().keys() == {"x-name"}
    assert call(address, LIST, {}, **{"x-name-bin": "!"}).fields().keys() == {"x-name-bin"}
    assert call(address, LIST, {}, **{"x-name-bin": "AQI"}).status == 200


def test_a_page_of_another_origin_may_not_call(address: str) -> None:
    answer = call(address, LIST, {}, origin="https://evil.example")
    assert (answer.status, answer.json["code"]) == (403, "permission_denied")
    assert ask(address, "/v2", origin="http://127.0.0.1").status == 403


def test_a_page_of_a_named_origin_may_call(address: str) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "authorization,content-type,connect-protocol-version"
    before = ask(address, f"/{LIST}", method="OPTIONS", **asked)
    assert (before.status, before.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "authorization" in before.headers["access-control-allow-headers"]
    answer = call(address, LIST, {}, origin=PAGE)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, PAGE)


def envelopes(body: bytes) -> list[tuple[int, Any]]:
    found = []
    while body:
        flags, length = struct.unpack(">BI", body[:5])
        found.append((flags, json.loads(body[5 : 5 + length])))
        body = body[5 + length :]
    return found


def stream(address: str, method: str, *messages: Any, **headers: str) -> list[tuple[int, Any]]:
    encoded = [json.dumps(message).encode() for message in messages]
    body = b"".join(struct.pack(">BI", 0, len(one)) + one for one in encoded)
    answer = ask(address, f"/{method}", body, content_type="application/connect+json", **headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/connect+json")
    return envelopes(answer.body)


def test_a_stream_of_answers_comes_in_envelopes(models: Server, address: str) -> None:
    *events, (flags, end) = stream(address, WATCH, {"name": _operation(models, done=True)})
    assert [int(event["sequence"]) for _, event in events] == [*range(1, len(events) + 1)]
    assert {flag for flag, _ in events} == {0}
    assert (flags, "error" in end) == (2, False)
    assert events[-1][1]["done"]["response"]["name"] == "models/shop/versions/1"


def test_a_stream_of_requests_is_taken(address: str) -> None:
    content = b"user,item\nu1,i1\n"
    header = {"filename": "a.csv", "sizeBytes": str(len(content)), "sha256": hashlib.sha256(content).hexdigest()}
    chunk = base64.b64encode(content).decode()
    (_, upload), (flags, _) = stream(
        address, "luthier.v1.DatasetService/UploadFiles", {"header": header}, {"chunk": chunk}
    )
    assert upload["name"].startswith("uploads/")
    assert flags == 2


def test_what_a_stream_fails_by_is_in_its_end(address: str) -> None:
    [(flags, end)] = stream(address, WATCH, {"name": "operations/" + "0" * 32})
    assert (flags, end["error"]["code"]) == (2, "not_found"), end
    [(_, end)] = stream(address, WATCH, {"nome": "x"})
    assert (end["error"]["code"], end["error"]["message"]) == ("invalid_argument", "nome: there is no such field")
    [(_, end)] = stream(address, WATCH)
    assert "has no message" in end["error"]["message"]
    both = ask(address, "/luthier.v1.PredictionService/StreamPredict", b"", content_type="application/connect+json")
    assert (both.status, "use gRPC" in both.json["message"]) == (505, True)


def test_a_call_whose_caller_goes_is_cancelled(tmp_path: Path) -> None:
    """The only thread for waits and watches is free again."""
    with serving(tmp_path / "home", "--http-listen", "127.0.0.1:0", "--stream-threads", "1") as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        name = _operation(server)
        body = json.dumps({"name": name, "timeout": "60s"})
        head = (
            "POST /google.longrunning.Operations/WaitOperation HTTP/1.1\r\nHost: x\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        host, _, port = address_of(server).rpartition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall((head + body).encode())
            time.sleep(0.5)
        watch = server.stub(operation_pb2_grpc.OperationServiceStub).WatchOperation(
            operation_pb2.WatchOperationRequest(name=name), timeout=15
        )
        assert next(watch).sequence == 1
        watch.cancel()


def test_who_sends_no_request_is_not_waited_for(address: str) -> None:
    host, _, port = address.rpartition(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        for _ in range(4):
            connection.sendall(b"X-A: b\r\n" if _ else b"POST / HTTP/1.1\r\n")
            time.sleep(0.2)
        assert connection.recv(100) == b""
    assert 8 < time.monotonic() - started < 20


def test_a_front_that_dies_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--http-listen", "127.0.0.1:0") as server:
        address = address_of(server)
        os.kill(_front_of(server), signal.SIGKILL)
        # Nobody is turned away meanwhile: the socket is the server's.
        assert call(address, LIST, {}).status == 200
        wait_for_lines(server, "HTTP process ended", 1)
    assert server.process.returncode == 0
    assert lines(server, "unexpected error") == []


def test_processes_on_one_port_have_a_front_each(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--http-listen", "127.0.0.1:0", "--processes", "2") as server:
        wait_for_lines(server, "http", 2)
        [address] = {line["address"] for line in lines(server, "http")}
        assert [call(address, LIST, {}).status for _ in range(20)] == [200] * 20
    assert server.process.returncode == 0


def test_what_is_in_flight_at_the_end_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--http-listen", "127.0.0.1:0") as server, ThreadPoolExecutor(1) as thread:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        message = {"name": _operation(server), "timeout": "2s"}
        address = address_of(server)
        waiting = thread.submit(call, address, "google.longrunning.Operations/WaitOperation", message)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert waiting.result(20).status == 200
        assert server.process.wait(15) == 0
    with pytest.raises(ConnectionRefusedError):
        call(address, LIST, {})


def test_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "luthier", "--home", str(tmp_path), "--listen", "127.0.0.1:0"]
        done = subprocess.run([*command, "--http-listen", listen], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("choose another with --http-listen")


@pytest.mark.parametrize("flags", [("--http-listen", "0.0.0.0:8080"), ("--http-listen", "[::]:0", "--tokens")])
def test_others_are_let_in_by_tls_and_tokens_alone(tmp_path: Path, flags: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "luthier", "--home", str(tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"luthier serve --http-listen {flags[1]} --tls-certificate" in done.stderr


# The Open Inference Protocol.


def infer(address: str, model: str, asked: Any, **more: Any) -> Answer:
    return ask(address, f"/v2/models/{model}/infer", json.dumps(asked), **more)


def test_a_server_and_its_models_describe_themselves(address: str) -> None:
    assert ask(address, "/v2/health/live").json == {"live": True}
    assert ask(address, "/v2/health/ready").json == {"ready": True}
    assert ask(address, "/v2").json["name"] == "luthier"
    assert ask(address, "/v2/models/table").json == {
        "name": "table",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 1]}],
        "outputs": [{"name": "value", "datatype": "FP32", "shape": [-1]}],
    }
    assert ask(address, "/v2/models/table/versions/1").status == 200
    assert ask(address, "/v2/models/table/versions/2").status == 404
    assert ask(address, "/v2/models/table/ready").json == {"ready": True}
    nobody = ask(address, "/v2/models/nobody/ready")
    assert (nobody.status, nobody.json) == (400, {"ready": False})
    assert ask(address, "/v2/models/table/config").json["max_batch_size"] == 1024
    index = ask(address, "/v2/repository/index", "{}").json
    assert {(one["name"], one["version"], one["state"]) for one in index} == {
        ("shop", "1", "READY"),
        ("table", "1", "READY"),
    }


@pytest.mark.parametrize("data", [[0, 0], [[0], [0]], [0.0, 0.0]])
def test_tensors_of_json(address: str, data: Any) -> None:
    tensor = {"name": "features", "datatype": "FP32", "shape": [2, 1], "data": data}
    answer = infer(address, "table", {"id": "seven", "inputs": [tensor]})
    assert answer.json["parameters"]["prediction_id"]
    assert answer.json == {
        "model_name": "table",
        "model_version": "1",
        "id": "seven",
        "parameters": answer.json["parameters"],
        "outputs": [{"name": "value", "datatype": "FP32", "shape": [2], "data": [7.0, 7.0]}],
    }


def test_tensors_as_bytes(address: str) -> None:
    raw = np.zeros((3, 1), np.float32).tobytes()
    tensor = {"name": "features", "datatype": "FP32", "shape": [3, 1], "parameters": {"binary_data_size": len(raw)}}
    asked = {"inputs": [tensor], "outputs": [{"name": "value", "parameters": {"binary_data": True}}]}
    header = json.dumps(asked).encode()
    length = {"inference_header_content_length": str(len(header))}
    answer = ask(address, "/v2/models/table/versions/1/infer", header + raw, **length)
    assert answer.status == 200, answer.body
    at = int(answer.headers["inference-header-content-length"])
    [output] = json.loads(answer.body[:at])["outputs"]
    assert output == {"name": "value", "datatype": "FP32", "shape": [3], "parameters": {"binary_data_size": 12}}
    assert np.frombuffer(answer.body[at:], np.float32).tolist() == [7, 7, 7]


def test_strings_go_through_the_codec(address: str) -> None:
    tensor = {"name": "user", "datatype": "BYTES", "shape": [2, 1], "data": ["u1", "u2"]}
    [output] = infer(address, "shop.instances", {"inputs": [tensor]}).json["outputs"]
    assert [len(json.loads(text)["items"]) for text in output["data"]] == [10, 10]


def tensor(**changed: Any) -> dict[str, Any]:
    return {"name": "features", "datatype": "FP32", "shape": [1, 1], "data": [0], **changed}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"inputs": [tensor(data=["a"])]}, "inputs.features.data: has elements that are no FP32: str"),
        ({"inputs": [tensor(data=[True])]}, "inputs.features.data: has elements that are no FP32: bool"),
        ({"inputs": [tensor(data=[1, 2])]}, "inputs.features.data: has 2 elements, its shape [1, 1] has 1"),
        ({"inputs": [tensor(data=[[1], 2])]}, "inputs.features.data: has rows and elements side by side"),
        ({"inputs": [tensor(data=None)]}, "inputs.features.data: is no array"),
        ({"inputs": [tensor(datatype="FP99")]}, "inputs.features.datatype: is none of BOOL"),
        ({"inputs": [tensor(datatype="INT8", data=[300])]}, "inputs.features.data: has elements that INT8 has no room"),
        ({"inputs": [tensor(datatype="INT64")]}, "inputs.features: is of INT64, not FP32"),
        ({"inputs": [tensor(shape=[-1, 1])]}, "inputs.features.shape: is no array of lengths"),
        ({"inputs": [tensor(parameters={"binary_data_size": 4})]}, "binary_data_size: is no number of bytes up to"),
        ({"inputs": [tensor(parameters={"shared_memory_region": "x"})]}, "shared memory is not taken"),
        ({"inputs": [{}]}, "inputs[0].name: is missing"),
        ({"inputs": 1}, "inputs: is no array of objects"),
        ({"inputs": []}, "inputs.features: is missing"),
        ({"tensors": []}, "tensors: there is no such field"),
        ({"inputs": [tensor()], "outputs": [{"name": "logits"}]}, "outputs.logits: is not known"),
        ([], "body: is no JSON object"),
    ],
)
def test_what_is_wrong_with_tensors_is_named(address: str, asked: Any, why: str) -> None:
    answer = infer(address, "table", asked)
    assert (answer.status, [*answer.json]) == (400, ["error"])
    assert why in answer.json["error"]


def test_a_length_of_the_header_is_held_to(address: str) -> None:
    for length in ("-1", "99999", "x"):
        answer = infer(address, "table", {"inputs": [tensor()]}, inference_header_content_length=length)
        assert answer.json["error"].startswith("inference-header-content-length: is no number")
    body = json.dumps({"inputs": [tensor()]}) + "more"
    answer = ask(address, "/v2/models/table/infer", body, inference_header_content_length=str(len(body) - 4))
    assert answer.json["error"] == "body: has 4 bytes behind those of its tensors"


def test_models_are_unloaded_and_loaded(address: str) -> None:
    assert ask(address, "/v2/repository/models/table/unload", "{}").status == 200
    assert ask(address, "/v2/models/table/ready").status == 400
    override = ask(address, "/v2/repository/models/table/load", json.dumps({"parameters": {"config": "{}"}}))
    assert (override.status, "only bundles that were published" in override.json["error"]) == (400, True)
    assert ask(address, "/v2/repository/models/table/load").status in (404, 405)
    assert ask(address, "/v2/repository/models/table/load", b"", method="POST").status == 200
    assert ask(address, "/v2/models/table/ready").status == 200


@pytest.mark.skipif(not (TRITON / ".made").exists(), reason="Triton's tools are not installed; `make test` does")
def test_tritonclient_works_as_it_is(address: str) -> None:
    program = ROOT / "tests/e2e/triton/calls_http.py"
    done = subprocess.run(
        [TRITON / "bin" / "python", program, address],
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["live"]
    assert found["ready"]
    assert found["model_ready"]
    assert not found["stranger_ready"]
    assert found["server"]["name"] == "luthier"
    assert found["metadata"]["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 1]}]
    assert found["config"]["max_batch_size"] == 1024
    assert found["binary"] == found["json"] == found["compressed"] == [7, 7, 7]
    assert [len(json.loads(text)["items"]) for text in found["strings"]] == [10, 10]
    assert "models/nobody/aliases/production was not found" in found["error"]
    assert {model["name"] for model in found["index"]} == {"shop", "table"}
    assert found["statistics"]["model_stats"][0]["name"] == "table"


def _front_of(server: Server) -> int:
    [pid] = [pid for pid in children(server.process.pid) if b"luthier.web" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid


def _peak_of_front(server: Server) -> int:
    status = Path(f"/proc/{_front_of(server)}/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _operation(server: Server, done: bool = False) -> str:
    """An operation: one that has ended, or a waiting one that does not."""
    if done:
        listed = server.stub(operations_pb2_grpc.OperationsStub).ListOperations(
            operations_pb2.ListOperationsRequest(name="operations")
        )
        return next(one.name for one in listed.operations if one.done)
    request = model_pb2.FineTuneRequest(model_id="waiting", task="recommendation", dataset="datasets/shop")
    operation = server.stub(model_pb2_grpc.ModelServiceStub).FineTune(request)
    server.stub(operation_pb2_grpc.OperationServiceStub).PauseOperation(
        operation_pb2.PauseOperationRequest(name=operation.name)
    )
    return str(operation.name)
