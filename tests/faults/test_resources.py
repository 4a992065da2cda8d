"""Trainings that run out of what they need, or are no longer wanted: each ends with a reason, and the server lives."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2

from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import model_pb2, model_pb2_grpc
from support import LONG, Server, children, create_dataset, fine_tune, interactions, serving, until_training

QUICK = recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """With a model `served` of the data set `shop`."""
    with serving(tmp_path / "home") as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        fine_tune(server, "served", "recommendation", "shop", QUICK)
        yield server


@contextmanager
def limited(server: Server, kind: int, most: int) -> Iterator[None]:
    """Puts a limit on a server, which those that it starts inherit."""
    before = resource.prlimit(server.process.pid, kind, (most, resource.RLIM_INFINITY))
    yield
    resource.prlimit(server.process.pid, kind, before)


def submit(server: Server, config: recommendation.Config, dataset: str = "shop") -> operations_pb2.Operation:
    request = model_pb2.FineTuneRequest(model_id="m", task="recommendation", dataset=f"datasets/{dataset}")
    request.config.Pack(config)
    return server.stub(model_pb2_grpc.ModelServiceStub).FineTune(request)


def serves(server: Server) -> bool:
    asked = recommendation.RecommendRequest(model="served", instances=[recommendation.Instance(user="u1")])
    answer = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend(asked, timeout=5)
    return bool(answer.predictions[0].items)


def artefacts(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "home" / "bundles").iterdir())


def test_a_full_disk_is_the_reason(server: Server, tmp_path: Path) -> None:
    published = artefacts(tmp_path)
    create_dataset(server, "many", "recommendation", {"_": interactions(tmp_path / "many.csv", users=4000)})
    wide = recommendation.Config(algorithm=recommendation.ALGORITHM_ALS, factors=512, regularization=0.1, iterations=1)
    with limited(server, resource.RLIMIT_FSIZE, 3 * 2**20):
        done = server.wait(submit(server, wide, "many"))
        assert (done.error.code, "ran out of disk space" in done.error.message) == (
            code_pb2.RESOURCE_EXHAUSTED,
            True,
        ), server.log[-3:]
        assert serves(server)
        assert artefacts(tmp_path) == published
    assert server.result(submit(server, wide, "many"), model_pb2.ModelVersion).name == "models/m/versions/1"


def test_too_little_memory_is_the_reason(server: Server, tmp_path: Path) -> None:
    published = artefacts(tmp_path)
    draw = random.Random(0)
    rows = [f"u{user},i{item}" for user in range(14_000) for item in (user, draw.randrange(14_000), draw.randrange(9))]
    (tmp_path / "wide.csv").write_text("\n".join(["user,item", *rows]), encoding="utf-8")
    create_dataset(server, "wide", "recommendation", {"_": tmp_path / "wide.csv"})
    dense = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)
    with limited(server, resource.RLIMIT_AS, 3 * 2**30):
        done = server.wait(submit(server, dense, "wide"))
        assert (done.error.code, "ran out of memory" in done.error.message) == (code_pb2.RESOURCE_EXHAUSTED, True), (
            server.log[-3:]
        )
        assert serves(server)
    assert artefacts(tmp_path) == published
    assert server.result(submit(server, QUICK), model_pb2.ModelVersion).name == "models/m/versions/1"


def test_a_cancelled_training_leaves_no_process_and_no_file(server: Server, tmp_path: Path) -> None:
    published = artefacts(tmp_path)
    operation = submit(server, LONG)
    until_training(server, operation)
    started = children(server.process.pid)
    assert started
    operations = server.stub(operations_pb2_grpc.OperationsStub)
    operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
    deadline = time.monotonic() + 5
    while alive := [pid for pid in started if Path(f"/proc/{pid}/exe").exists()]:
        assert time.monotonic() < deadline, f"still there after 5 s: {alive}"
        time.sleep(0.05)
    assert server.wait(operation).error.code == code_pb2.CANCELLED
    while list((tmp_path / "home" / "work").iterdir()):
        assert time.monotonic() < deadline + 2, "its folder stays"
        time.sleep(0.05)
    assert artefacts(tmp_path) == published
