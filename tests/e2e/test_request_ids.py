"""A request has one id, in the caller's hands and in every line of the server's log."""

from __future__ import annotations

import json
import re
import sqlite3
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2, error_details_pb2

from luthier import v1
from luthier.services.interceptor import CHANGES
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.v1 import dataset_pb2, dataset_pb2_grpc, model_pb2, model_pb2_grpc, prediction_pb2, prediction_pb2_grpc
from luthier_client import Client, errors
from scrapes import wait_for_lines
from support import Server, fine_tune, interactions, serving, status_of, upload

READS = re.compile(r"(Get|List|Find|Suggest|Wait|Watch|Download|Predict|StreamPredict|Render)\w*|RecordFeedback")
"""Feedback among them: there is as much of it as there are predictions, and each is kept with its own."""


def create(server: Server, path: Path, **metadata: str) -> tuple[str, dict[str, str]]:
    """Makes a data set; returns the operation's name and what came with the answer."""
    request = dataset_pb2.CreateDatasetRequest(
        dataset_id="ids", task="recommendation", files=[dataset_pb2.DatasetFile(upload=upload(server, path))]
    )
    method = server.stub(dataset_pb2_grpc.DatasetServiceStub).CreateDataset
    operation, call = method.with_call(request, metadata=[(k.replace("_", "-"), v) for k, v in metadata.items()])
    server.result(operation, dataset_pb2.DatasetVersion)
    return operation.name, dict(call.trailing_metadata())


def test_what_changes_something_is_logged_under_the_callers_id(server: Server, tmp_path: Path) -> None:
    path = interactions(tmp_path / "ids.csv")
    operation, answered = create(server, path, x_request_id="order-66/a")
    assert answered["x-request-id"] == "order-66/a"
    [line] = wait_for_lines(server, "call", 1, request_id="order-66/a")
    assert line["method"] == "/luthier.v1.DatasetService/CreateDataset"
    assert line["code"] == "OK"
    assert line["operation"] == operation


def request_info(error: grpc.RpcError) -> str:
    """The id in the details of an error."""
    for packed in status_of(error).details:
        detail = error_details_pb2.RequestInfo()
        if packed.Unpack(detail):
            return detail.request_id
    raise AssertionError("the error has no RequestInfo")


@pytest.mark.parametrize("given", ["", "a b", 'quote"', "x" * 129, "-rf"])
def test_an_id_that_is_not_safe_to_repeat_is_replaced(given: str, server: Server, tmp_path: Path) -> None:
    _, answered = create(server, interactions(tmp_path / "ids.csv"), **({"x_request_id": given} if given else {}))
    id = answered["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", id)
    [line] = wait_for_lines(server, "call", 1, request_id=id)
    assert line["method"].endswith("/CreateDataset")


def test_an_error_carries_the_id(server: Server) -> None:
    request = model_pb2.SetAliasRequest(name="models/none-such/aliases/a", model_version="models/none-such/versions/1")
    method = server.stub(model_pb2_grpc.ModelServiceStub).SetAlias
    with pytest.raises(grpc.RpcError) as caught:
        method(request, metadata=[("x-request-id", "promote-1")])
    assert request_info(caught.value) == "promote-1"
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "promote-1"  # type: ignore[attr-defined]
    [line] = wait_for_lines(server, "call", 1, request_id="promote-1")
    assert line["code"] == "NOT_FOUND"


def test_the_client_has_it_in_its_errors(server: Server) -> None:
    with Client(server.address) as client, pytest.raises(errors.NotFound) as caught:
        client.delete_model("none-such")
    assert wait_for_lines(server, "call", 1, request_id=caught.value.request_id)


def test_an_unexpected_error_is_explained_under_the_id(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        operation, _ = create(server, interactions(tmp_path / "ids.csv"))
        # A row that no code of ours writes.
        with sqlite3.connect(tmp_path / "luthier.db") as database:
            database.execute("UPDATE operations SET kind = 'odd'")
        get = server.stub(operations_pb2_grpc.OperationsStub).GetOperation
        with pytest.raises(grpc.RpcError) as caught:
            get(operations_pb2.GetOperationRequest(name=operation), metadata=[("x-request-id", "odd-row")])
        assert status_of(caught.value).code == code_pb2.INTERNAL
        assert request_info(caught.value) == "odd-row"
        [line] = wait_for_lines(server, "unexpected error", 1)
        assert line["request_id"] == "odd-row"
        assert "Traceback" in line["exception"]


def test_predictions_that_succeed_are_not_logged(server: Server, tmp_path: Path) -> None:
    create(server, interactions(tmp_path / "ids.csv"))
    fine_tune(
        server, "ids", "recommendation", "ids", recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)
    )
    request = prediction_pb2.PredictRequest(model="ids")
    request.instances.add().Pack(recommendation.Instance(user="u1"))
    stub = server.stub(prediction_pb2_grpc.PredictionServiceStub)
    stub.Predict(request)
    before = len(server.log)
    for _ in range(20):
        stub.Predict(request)
    assert [line for line in server.log[before:] if "redict" in line] == []


def test_lines_of_a_worker_name_their_operation(server: Server, tmp_path: Path) -> None:
    operation, _ = create(server, interactions(tmp_path / "ids.csv"))
    id = operation.partition("/")[2]
    assert "worker starts" in {line["event"] for line in map(json.loads, server.log) if line.get("operation") == id}


def test_every_method_either_reads_or_changes() -> None:
    files = [import_module(f"luthier.v1.{module.name}") for module in iter_modules(v1.__path__)]
    services = [s for file in files if hasattr(file, "DESCRIPTOR") for s in file.DESCRIPTOR.services_by_name.values()]
    services += operations_pb2.DESCRIPTOR.services_by_name.values()
    assert len(services) == 13
    for service in services:
        for method in service.methods:
            changes = CHANGES.fullmatch(f"/{service.full_name}/{method.name}") is not None
            assert changes != (READS.fullmatch(method.name) is not None), f"{service.full_name}/{method.name}"
