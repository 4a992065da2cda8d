"""Servers under more calls than they can answer, calls that nobody waits for, and many clients that only hold on."""

from __future__ import annotations

import os
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import sqlalchemy as sa
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from luthier.database import Database, model_versions
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import model_pb2, model_pb2_grpc
from support import LONG, Server, create_dataset, fine_tune, interactions, serving, status_of

PATH = os.pathsep.join([str(Path(__file__).parent / "paced"), *filter(None, [os.environ.get("PYTHONPATH")])])
EASE = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)
# Slow enough that one client offers twice of it on any machine.
PACE_S = 0.1


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the model `shop`, whose calls are computed together, for one server after the other."""
    home = tmp_path_factory.mktemp("home")
    with serving(home) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(home.parent / "shop.csv")})
        fine_tune(server, "shop", "recommendation", "shop", EASE)
    settle(home, most_rows=32)
    return home


@pytest.fixture(scope="module")
def alone(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same where no calls are computed together."""
    copy = Path(shutil.copytree(home, tmp_path_factory.mktemp("alone") / "home"))
    settle(copy, most_rows=1)
    return copy


def settle(home: Path, most_rows: int) -> None:
    """How many calls for the only model are computed together, whatever was measured at its publication."""
    database = Database(f"sqlite:///{home / 'luthier.db'}")
    with database.write() as connection:
        version = model_pb2.ModelVersion.FromString(connection.execute(sa.select(model_versions.c.record)).scalar_one())
        version.serving.most_rows = most_rows
        connection.execute(model_versions.update().values(record=version.SerializeToString()))
    database.close()


@contextmanager
def paced(home: Path, *flags: str) -> Iterator[Server]:
    """A server that computes four calls at once, each for PACE_S: what it can take is known on any machine."""
    with serving(home, "--prediction-threads", "4", *flags, PYTHONPATH=PATH, LUTHIER_PACE_S=str(PACE_S)) as server:
        for _ in range(20):
            ask(server)
        yield server


def asking(user: str = "u1") -> recommendation.RecommendRequest:
    return recommendation.RecommendRequest(model="shop", instances=[recommendation.Instance(user=user)])


def recommend(server: Server) -> Any:
    return server.stub(recommendation_grpc.RecommendationServiceStub).Recommend


def ask(server: Server) -> float:
    """The seconds that one call takes."""
    started = time.perf_counter()
    assert recommend(server)(asking(), timeout=30).predictions[0].items
    return time.perf_counter() - started


def threads_of(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


def resident_mb(server: Server) -> float:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def descriptors_of(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


@dataclass
class Watch:
    """How long health takes to answer, asked again and again beside what a test does."""

    server: Server
    seconds: list[float] = field(default_factory=list)

    def __enter__(self) -> Watch:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        check = self.server.stub(health_pb2_grpc.HealthStub).Check
        while not self._over.wait(0.02):
            started = time.perf_counter()
            check(health_pb2.HealthCheckRequest(), timeout=5)
            self.seconds.append(time.perf_counter() - started)


def overload(server: Server) -> tuple[Any, list[Any]]:
    """Twice as many calls as the server can take, for four seconds: how long each took, and the calls."""
    begun, ended, calls = {}, {}, []
    start = time.perf_counter()
    for number in range(int(4 * 2 * 4 / PACE_S)):
        time.sleep(max(0.0, start + number * PACE_S / 8 - time.perf_counter()))
        begun[number] = time.perf_counter()
        call = recommend(server).future(asking(), timeout=30)
        call.add_done_callback(lambda _, number=number: ended.setdefault(number, time.perf_counter()))
        calls.append(call)
    for call in calls:
        call.code()
    while len(ended) < len(calls):
        time.sleep(0.01)
    return np.array([ended[number] - begun[number] for number in range(len(calls))]), calls


# Calls that wait at once are computed at once, so that there the server takes more than one for each of its threads.
@pytest.mark.parametrize(("kept", "most_accepted"), [("alone", 0.65), ("home", 0.8)])
def test_twice_as_many_calls_as_can_be_answered(
    kept: str, most_accepted: float, request: pytest.FixtureRequest
) -> None:
    with paced(request.getfixturevalue(kept), "--most-waiting", "2") as server:
        slower, refusals, slowest = [], [], []
        # The slowest of a hundred is what the machine did as much as the server; of three turns the middle one counts.
        for _ in range(3):
            unloaded = [ask(server) for _ in range(100)]
            with Watch(server) as health:
                took, calls = overload(server)
            is_accepted = np.array([call.code() is grpc.StatusCode.OK for call in calls])
            refused = [call for call in calls if call.code() is not grpc.StatusCode.OK]
            assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert 0.35 < is_accepted.mean() < most_accepted
            slower.append(np.percentile(took[is_accepted], 99) / np.percentile(unloaded, 99))
            refusals.append(np.median(took[~is_accepted]))
            slowest.append(max(health.seconds))
        assert statistics.median(slower) <= 2
        assert statistics.median(slowest) < 0.1
        assert statistics.median(refusals) < PACE_S / 4
        status = status_of(refused[0])
        assert status.message == "2 calls wait for models/shop/versions/1, which is all that may"
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details if detail.Is(retry.DESCRIPTOR))
        assert 0 < retry.retry_delay.ToMilliseconds() <= 1000 * PACE_S


@pytest.mark.parametrize("kept", ["alone", "home"])
def test_calls_that_nobody_waits_for(kept: str, request: pytest.FixtureRequest) -> None:
    with paced(request.getfixturevalue(kept)) as server:
        # As many threads as there ever are: all that may wait do.
        calls = [recommend(server).future(asking()) for _ in range(400)]
        assert {call.code() for call in calls} == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}

        def round_of_calls() -> None:
            expiring = [recommend(server).future(asking(), timeout=0.03) for _ in range(50)]
            cancelled = [recommend(server).future(asking()) for _ in range(50)]
            time.sleep(0.05)
            for call in cancelled:
                call.cancel()
            late = {call.code() for call in expiring}
            assert grpc.StatusCode.DEADLINE_EXCEEDED in late
            assert late <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
            started = time.monotonic()
            ask(server)
            assert time.monotonic() - started < 1

        for _ in range(3):
            round_of_calls()
        before = threads_of(server)
        for _ in range(3):
            round_of_calls()
        assert threads_of(server) <= before + 2


def test_concurrent_calls_equal_sequential_ones(home: Path) -> None:
    with serving(home) as server:
        users = [f"u{number}" for number in range(80)]
        alone = [recommend(server)(asking(user)).predictions[0] for user in users]
        calls = []
        for _ in range(5):
            calls += [(user, recommend(server).future(asking(user))) for user in [*users, "nobody"]]
        for user, call in calls:
            if user == "nobody":
                assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
            else:
                assert call.result().predictions[0] == alone[users.index(user)]


def test_many_who_only_hold_on(home: Path) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with serving(home) as server, ExitStack() as stack:
        for _ in range(500):
            channel = stack.enter_context(grpc.insecure_channel(server.address, options))
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        streams = [server.stub(health_pb2_grpc.HealthStub).Watch(health_pb2.HealthCheckRequest()) for _ in range(200)]
        for stream in streams:
            assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
        assert statistics.median(ask(server) for _ in range(50)) < 0.1
        for stream in streams:
            stream.cancel()


def test_pings_as_often_as_allowed(home: Path) -> None:
    with serving(home) as server:
        pinging = [
            ("grpc.keepalive_time_ms", 21_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        with grpc.insecure_channel(server.address, pinging) as channel:
            stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
            # Of pings that come too early gRPC forgives the first three.
            time.sleep(90)
            assert stream.is_active()
            stream.cancel()
        hasty = [("grpc.keepalive_time_ms", 100), *pinging[1:]]
        with grpc.insecure_channel(server.address, hasty) as channel:
            stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            with pytest.raises(grpc.RpcError) as ended:
                for _ in stream:
                    pass
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "Too many pings" in ended.value.details() or "too_many_pings" in ended.value.details()


@pytest.mark.parametrize("minutes", [0.5, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(2400)])])
def test_memory_descriptors_and_threads_stay_as_they_are(home: Path, minutes: float) -> None:
    with serving(home) as server:
        sizes, of_each = (1, 3, 40, 200), 4
        ask(server)
        quiet = threads_of(server)

        def load(seconds: float) -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                calls = []
                for size in sizes:
                    instances = [recommendation.Instance(user=f"u{n % 80}", k=1 + n % 20) for n in range(size)]
                    asked = recommendation.RecommendRequest(model="shop", instances=instances)
                    calls += [recommend(server).future(asked) for _ in range(of_each)]
                for call in calls:
                    call.result()

        load(25)
        before = resident_mb(server), descriptors_of(server)
        load(60 * minutes)
        assert resident_mb(server) - before[0] < max(1.0 * minutes, 2.0)
        assert descriptors_of(server) <= before[1] + 2
        # A call that waits for its turn holds a thread: their number is that of the most that ever waited at once.
        assert threads_of(server) <= quiet + of_each * len(sizes)


def test_a_training_leaves_predictions_their_cores(home: Path) -> None:
    with serving(home) as server:

        def slowest() -> float:
            """The 99th percentile of some calls; of three turns the middle one, since one may meet another process."""
            return statistics.median(np.percentile([ask(server) for _ in range(200)], 99) for _ in range(3))

        slowest()
        idle = slowest()
        asked = model_pb2.FineTuneRequest(model_id="long", task="recommendation", dataset="datasets/shop")
        asked.config.Pack(LONG)
        operation = server.stub(model_pb2_grpc.ModelServiceStub).FineTune(asked)
        time.sleep(3)
        beside = slowest()
        operations = server.stub(operations_pb2_grpc.OperationsStub)
        assert not operations.GetOperation(operations_pb2.GetOperationRequest(name=operation.name)).done
        assert server.wait(operation).HasField("response")
        assert beside <= 3 * idle
