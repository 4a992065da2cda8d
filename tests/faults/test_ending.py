"""A server that is told to end while calls are in flight."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from support import Server, create_dataset, fine_tune, interactions, serving

PATH = os.pathsep.join([str(Path(__file__).parent / "paced"), *filter(None, [os.environ.get("PYTHONPATH")])])
PACE_S = 0.5
GRACE_S = 10.0
REQUEST = recommendation.RecommendRequest(model="shop", instances=[recommendation.Instance(user="u1")])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    with serving(home) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(home.parent / "ending-shop.csv")})
        config = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)
        fine_tune(server, "shop", "recommendation", "shop", config)
    return home


def watch(server: Server, seen: list[int]) -> threading.Thread:
    """Notes what the health turns to, until the stream ends."""

    def run() -> None:
        try:
            answers = server.stub(health_pb2_grpc.HealthStub).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            seen.extend(answer.status for answer in answers)
        except grpc.RpcError:
            pass

    thread = threading.Thread(target=run)
    thread.start()
    while not seen:
        time.sleep(0.01)
    return thread


def test_sigterm_under_load(home: Path) -> None:
    flags = ["--prediction-threads", "2", "--drain-s", str(GRACE_S)]
    with serving(home, *flags, PYTHONPATH=PATH, LUTHIER_PACE_S=str(PACE_S)) as server:
        recommend = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend
        assert recommend(REQUEST, timeout=30).predictions
        seen: list[int] = []
        watcher = watch(server, seen)
        # Each takes one of two turns of half a second: the last of them is far from its own when the signal comes.
        calls = [recommend.future(REQUEST, timeout=60) for _ in range(8)]
        deadline = time.monotonic() + 20
        while not any(call.done() for call in calls):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        unfinished = [call for call in calls if not call.done()]
        assert len(unfinished) >= 4
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        watcher.join(GRACE_S)
        assert seen == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
        # What comes now is refused, so that the caller turns to another server; what came before is answered.
        with grpc.insecure_channel(server.address) as late, pytest.raises(grpc.RpcError) as refused:
            late.unary_unary("/luthier.v1.TaskService/ListTasks")(b"", timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert all(call.result().predictions[0].items for call in calls)
        assert server.process.wait(GRACE_S) == 0
        assert time.monotonic() - began < GRACE_S
        assert not [line for line in server.log if '"error"' in line or "Traceback" in line]


def test_who_takes_longer_than_the_grace_time_is_cut_off(home: Path) -> None:
    with serving(home, "--drain-s", "1", PYTHONPATH=PATH, LUTHIER_PACE_S="8") as server:
        call = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend.future(REQUEST, timeout=60)
        time.sleep(1)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert time.monotonic() - began < 5
        assert server.process.wait(30) == 0
