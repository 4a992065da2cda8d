"""Processes that are killed, and what must be true afterwards."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2

from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import model_pb2, model_pb2_grpc, operation_pb2
from support import LONG, Server, children, create_dataset, fine_tune, interactions, serving, status_of, until_training

QUICK = recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)


def submit(server: Server, config: recommendation.Config, model: str = "m") -> operations_pb2.Operation:
    request = model_pb2.FineTuneRequest(model_id=model, task="recommendation", dataset="datasets/shop")
    request.config.Pack(config)
    return server.stub(model_pb2_grpc.ModelServiceStub).FineTune(request)


def test_a_killed_worker_is_replaced_and_publishes_once(tmp_path: Path, database_url: str) -> None:
    flags = ["--database-url", database_url]
    with serving(tmp_path, *flags) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        operation = submit(server, LONG)
        until_training(server, operation)
        for pid in children(server.process.pid):
            os.kill(pid, signal.SIGKILL)
        version = server.result(operation, model_pb2.ModelVersion)
        assert version.name == "models/m/versions/1"
        models = server.stub(model_pb2_grpc.ModelServiceStub)
        found = models.ListModelVersions(model_pb2.ListModelVersionsRequest(parent="models/m")).model_versions
        assert len(found) == 1
        done = server.stub(operations_pb2_grpc.OperationsStub).GetOperation(
            operations_pb2.GetOperationRequest(name=operation.name)
        )
        metadata = operation_pb2.OperationMetadata()
        assert done.metadata.Unpack(metadata)
        assert metadata.attempt == 2


def test_a_killed_server_leaves_no_orphans_and_its_operations_go_on(tmp_path: Path, database_url: str) -> None:
    flags = ["--database-url", database_url]
    with serving(tmp_path, *flags, "--lease-s", "2") as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        served = fine_tune(server, "served", "recommendation", "shop", QUICK)
        running, waiting = submit(server, LONG), submit(server, QUICK, "n")
        until_training(server, running)
        orphans = children(server.process.pid)
        assert orphans
        server.process.kill()
        server.process.wait()
        # Here: leaving the block waits for all that write to the server's log.
        deadline = time.monotonic() + 2
        while alive := [pid for pid in orphans if Path(f"/proc/{pid}/exe").exists()]:
            assert time.monotonic() < deadline, f"still there: {alive}"
            time.sleep(0.05)
    with serving(tmp_path, *flags, "--lease-s", "2") as server:
        answer = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend(
            recommendation.RecommendRequest(model="served", instances=[recommendation.Instance(user="u1")])
        )
        assert answer.model_version == served.name
        assert server.result(running, model_pb2.ModelVersion).name == "models/m/versions/1"
        assert server.result(waiting, model_pb2.ModelVersion).name == "models/n/versions/1"
        deadline = time.monotonic() + 2
        while left := list((tmp_path / "work").iterdir()):
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)


def test_a_terminated_server_gives_its_operation_back_without_blame(tmp_path: Path, database_url: str) -> None:
    flags = ["--database-url", database_url]
    with serving(tmp_path, *flags) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        operation = submit(server, LONG)
        until_training(server, operation)
        server.process.terminate()
        assert server.process.wait(30) == 0
    with serving(tmp_path, *flags) as server:
        assert server.result(operation, model_pb2.ModelVersion).name == "models/m/versions/1"


def test_a_changed_artefact_is_refused_and_the_older_version_serves_on(tmp_path: Path, database_url: str) -> None:
    flags = ["--database-url", database_url]
    with serving(tmp_path, *flags) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        fine_tune(server, "m", "recommendation", "shop", QUICK)
        ease = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)
        second = fine_tune(server, "m", "recommendation", "shop", ease)
        model = tmp_path / "bundles" / second.digest / "model.onnx"
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
        request = model_pb2.SetAliasRequest(name="models/m/aliases/production", model_version=second.name)
        with pytest.raises(grpc.RpcError) as caught:
            server.stub(model_pb2_grpc.ModelServiceStub).SetAlias(request)
        assert status_of(caught.value).code == code_pb2.DATA_LOSS
        predict = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend
        asked = recommendation.RecommendRequest(model="m/2", instances=[recommendation.Instance(user="u1")])
        with pytest.raises(grpc.RpcError) as caught:
            predict(asked)
        assert status_of(caught.value).code == code_pb2.DATA_LOSS
        asked.model = "m"
        assert predict(asked).model_version == "models/m/versions/1"
