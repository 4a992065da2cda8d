"""Rollouts on a real server: what is decided by feedback, while callers notice nothing."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any as Anything

import grpc
import pytest
from google.protobuf.any_pb2 import Any

from luthier.database import Database
from luthier.store import Store
from luthier.v1 import (
    model_pb2,
    model_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
)
from published import publish
from support import Server, serving

pb = pytest.importorskip("acme_regression.v1.regression_pb2")

ALIAS = "models/m/aliases/production"
ONE, TWO, THREE = (f"models/m/versions/{number}" for number in (1, 2, 3))
EVERY_S = 0.05
OVER = {rollout_pb2.Rollout.STATE_PROMOTED, rollout_pb2.Rollout.STATE_ROLLED_BACK, rollout_pb2.Rollout.STATE_ENDED}
"""The metric of these models is the root of the mean squared error: the version published with the value v gives v for
every row, and what is true is 0 with a little noise."""


def ask(server: Server, *metadata: tuple[str, str], model: str = "m", rows: int = 1) -> prediction_pb2.PredictResponse:
    instance = Any()
    instance.Pack(pb.Instance(features=[0]))
    request = prediction_pb2.PredictRequest(model=model, instances=[instance] * rows)
    return server.stub(prediction_pb2_grpc.PredictionServiceStub).Predict(request, metadata=metadata, timeout=10)


def value_of(response: prediction_pb2.PredictResponse) -> float:
    prediction = pb.Prediction()
    assert response.predictions[0].Unpack(prediction)
    value: float = prediction.value
    return value


def tell(server: Server, id: str, target: float, index: int = 0) -> prediction_pb2.RecordFeedbackResponse:
    label = Any()
    label.Pack(pb.Example(target=target))
    request = prediction_pb2.RecordFeedbackRequest(prediction_id=id, index=index, labels=[label])
    return server.stub(prediction_pb2_grpc.PredictionServiceStub).RecordFeedback(request, timeout=10)


def start(server: Server, candidate: str = TWO, percent: float = 50, **more: Anything) -> rollout_pb2.Rollout:
    request = rollout_pb2.StartRolloutRequest(alias=ALIAS, candidate=candidate, percent=percent, **more)
    return server.stub(rollout_pb2_grpc.RolloutServiceStub).StartRollout(request)


def started(server: Server, candidate: str = TWO, percent: float = 50, **more: Anything) -> rollout_pb2.Rollout:
    """Starts one, and returns when the server follows it."""
    rollout = start(server, candidate, percent, **more)
    until(lambda: candidate in {ask(server).model_version for _ in range(10)}, "the candidate answers nobody")
    return rollout


def get(server: Server, rollout: rollout_pb2.Rollout) -> rollout_pb2.Rollout:
    request = rollout_pb2.GetRolloutRequest(name=rollout.name)
    return server.stub(rollout_pb2_grpc.RolloutServiceStub).GetRollout(request, timeout=20)


def events(server: Server, rollout: rollout_pb2.Rollout, timeout: float = 30) -> list[rollout_pb2.RolloutEvent]:
    """All until it is over."""
    request = rollout_pb2.WatchRolloutRequest(name=rollout.name)
    return list(server.stub(rollout_pb2_grpc.RolloutServiceStub).WatchRollout(request, timeout=timeout))


def production(server: Server) -> str:
    model = server.stub(model_pb2_grpc.ModelServiceStub).GetModel(model_pb2.GetModelRequest(name="models/m"))
    return next(alias.model_version for alias in model.aliases if alias.name == ALIAS)


def until(what: Callable[[], bool], why: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


@dataclass
class Load:
    """20 calls a second, each another caller's, and what they came to."""

    server: Server
    answers: list[tuple[str, str]] = field(default_factory=list)
    """Version and prediction id."""
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def run(self, ended: threading.Event) -> None:
        number = 0
        while not ended.wait(EVERY_S):
            number += 1
            try:
                response = ask(self.server, ("luthier-key", f"load-{number}"))
            except grpc.RpcError as error:
                self.errors.append(str(error))
                continue
            self.answers.append((response.model_version, response.prediction_id))
            if value_of(response) != VALUES[response.model_version]:
                self.wrong.append(response.model_version)


VALUES = {ONE: 1.0, TWO: 2.0, THREE: 0.5}


@contextmanager
def loaded(server: Server) -> Iterator[Load]:
    """A load from before to after, no call of which may fail or be answered by anything but what it names."""
    load, ended = Load(server), threading.Event()
    thread = threading.Thread(target=load.run, args=(ended,))
    thread.start()
    try:
        yield load
    finally:
        ended.set()
        thread.join()
    assert not load.errors, load.errors[:3]
    assert not load.wrong
    assert len(load.answers) > 10


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three versions of a model: 1 is in production, 2 is worse, 3 is better."""
    database = Database(f"sqlite:///{tmp_path / 'luthier.db'}")
    database.migrate()
    for value in VALUES.values():
        publish(database, Store(tmp_path), "m", value)
    database.close()
    return tmp_path


@pytest.fixture
def running(home: Path) -> Iterator[Server]:
    with serving(home) as server:
        yield server


def feed(server: Server, count: int, draw: random.Random, equal: bool = False) -> Counter[str]:
    """Asks for so many callers and tells what was true; with `equal`, versions err alike."""
    versions: Counter[str] = Counter()
    for _ in range(count):
        response = ask(server, ("luthier-key", str(draw.random())))
        versions[response.model_version] += 1
        noise = draw.gauss(0, 0.3)
        tell(server, response.prediction_id, noise + (value_of(response) if equal else 0))
    return versions


@pytest.mark.parametrize(("candidate", "kind"), [(TWO, "ROLLED_BACK"), (THREE, "PROMOTED")])
def test_feedback_decides_under_load(running: Server, candidate: str, kind: str) -> None:
    """A worse candidate is rolled back, a better one promoted, at the first look at 50 labels a side."""
    with loaded(running) as load:
        rollout = started(running, candidate)
        feed(running, 170, random.Random(0))
        seen = events(running, rollout)
        winner = candidate if kind == "PROMOTED" else ONE
        until(lambda: ask(running).model_version == winner, f"calls are not answered by {winner}")
        before = len(load.answers)
        time.sleep(1)
        assert {version for version, _ in load.answers[before + 1 :]} == {winner}
    assert {version for version, _ in load.answers} == {ONE, candidate}
    kinds = [rollout_pb2.RolloutEvent.Kind.Name(event.kind) for event in seen]
    assert (kinds[0], kinds[-1]) == ("KIND_STARTED", f"KIND_{kind}")
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert "look 1" in seen[-1].message
    assert "rmse" in seen[-1].message
    assert production(running) == winner
    after = get(running, rollout)
    assert after.reason == seen[-1].message
    figures = {side.model_version: side for side in after.sides}
    assert figures[ONE].labels + figures[candidate].labels == 170
    assert figures[ONE].value == pytest.approx(1.04, abs=0.1)
    assert figures[candidate].value == pytest.approx((VALUES[candidate] ** 2 + 0.09) ** 0.5, abs=0.1)
    assert all(side.lower < side.value < side.upper and not side.errors for side in after.sides)
    assert (after.comparison.lower > 0) == (kind == "PROMOTED")
    assert sum(side.calls for side in after.sides) >= 170


def test_equal_versions_stay_undecided_under_load(running: Server) -> None:
    with loaded(running) as load:
        rollout = started(running, TWO)
        feed(running, 230, random.Random(1), equal=True)
        until(lambda: get(running, rollout).comparison.looks >= 2, "it has not been looked at twice")
    after = get(running, rollout)
    assert after.state == rollout_pb2.Rollout.STATE_RUNNING
    assert after.comparison.lower < 0 < after.comparison.upper
    assert after.comparison.next_look >= 200
    assert {version for version, _ in load.answers} == {ONE, TWO}
    assert production(running) == ONE


def test_a_caller_stays_with_its_side_and_more_percent_adds_callers(running: Server) -> None:
    rollout = started(running, percent=20)
    stub = running.stub(rollout_pb2_grpc.RolloutServiceStub)

    def with_candidate() -> set[int]:
        return {key for key in range(200) if ask(running, ("luthier-key", f"caller-{key}")).model_version == TWO}

    few = with_candidate()
    assert few == with_candidate()
    assert 20 <= len(few) <= 60
    stub.UpdateRollout(rollout_pb2.UpdateRolloutRequest(name=rollout.name, percent=70))
    until(lambda: len(with_candidate()) > 100, "the share has not grown")
    many = with_candidate()
    assert few < many
    stub.UpdateRollout(rollout_pb2.UpdateRolloutRequest(name=rollout.name, paused=True))
    until(lambda: not with_candidate(), "a paused rollout goes on")
    stub.UpdateRollout(rollout_pb2.UpdateRolloutRequest(name=rollout.name, paused=False))
    until(lambda: with_candidate() == many, "it does not go on as before")


def test_shadows_answer_nobody_and_are_scored(running: Server) -> None:
    rollout = start(running, "", 0, shadows=[THREE])
    until(lambda: get(running, rollout).sides[1].calls > 0 or not ask(running), "the shadow is not asked")
    for _ in range(20):
        response = ask(running)
        assert response.model_version == ONE
        time.sleep(0.01)
        tell(running, response.prediction_id, 0.0)
    sides = {side.model_version: side for side in get(running, rollout).sides}
    assert sides[ONE].value == 1.0
    assert sides[THREE].role == rollout_pb2.RolloutSide.ROLE_SHADOW
    assert sides[THREE].calls >= 15
    assert sides[THREE].labels >= 10
    assert sides[THREE].value == 0.5


def test_a_candidate_that_fails_is_rolled_back_at_once_and_callers_get_an_answer(home: Path) -> None:
    database = Database(f"sqlite:///{home / 'luthier.db'}")
    version = publish(database, Store(home), "m", 9.0, output="other")
    database.close()
    with serving(home) as server, loaded(server) as load:
        rollout = start(server, version.name, 50)
        seen = events(server, rollout)
        assert seen[-1].kind == rollout_pb2.RolloutEvent.KIND_ROLLED_BACK
        assert "internal error" in seen[-1].message
    assert {name for name, _ in load.answers} == {ONE}
    assert any('"unexpected error"' in line for line in server.log)


def test_a_candidate_that_cannot_be_loaded_is_rolled_back(home: Path) -> None:
    with serving(home) as server, loaded(server) as load:
        graph = Store(home).bundle(digest_of(server, TWO)) / "model.onnx"
        database = Database(f"sqlite:///{home / 'luthier.db'}")
        rollout = start(server, THREE, 0)
        stub = server.stub(rollout_pb2_grpc.RolloutServiceStub)
        stop = rollout_pb2.StopRolloutRequest
        stub.StopRollout(stop(name=rollout.name, outcome=stop.OUTCOME_ROLL_BACK, reason="only a look"))
        graph.write_bytes(b"no graph")
        # The call proves its files first; what breaks after it is met by the load.
        with pytest.raises(grpc.RpcError) as refused:
            start(server, TWO)
        assert refused.value.code() == grpc.StatusCode.DATA_LOSS
        from luthier.rollouts import Rollouts

        held = Rollouts(database).start(rollout_pb2.StartRolloutRequest(alias=ALIAS, candidate=TWO, percent=50))
        seen = events(server, held)
        database.close()
        assert "cannot be loaded" in seen[-1].message
    assert {name for name, _ in load.answers} == {ONE}


def digest_of(server: Server, name: str) -> str:
    request = model_pb2.GetModelVersionRequest(name=name)
    digest: str = server.stub(model_pb2_grpc.ModelServiceStub).GetModelVersion(request).digest
    return digest


def test_by_hand(running: Server) -> None:
    stub = running.stub(rollout_pb2_grpc.RolloutServiceStub)
    stop = rollout_pb2.StopRolloutRequest
    rollout = start(running, THREE)
    assert start(running, THREE).name == rollout.name
    with pytest.raises(grpc.RpcError) as other:
        start(running, TWO)
    assert other.value.code() == grpc.StatusCode.ALREADY_EXISTS
    with pytest.raises(grpc.RpcError) as held:
        running.stub(model_pb2_grpc.ModelServiceStub).DeleteModelVersion(
            model_pb2.DeleteModelVersionRequest(name=THREE)
        )
    assert held.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    promote = stop(name=rollout.name, outcome=stop.OUTCOME_PROMOTE, reason="it is Friday")
    assert stub.StopRollout(promote).reason == "by hand: it is Friday"
    assert stub.StopRollout(promote).state == rollout_pb2.Rollout.STATE_PROMOTED
    with pytest.raises(grpc.RpcError) as ended:
        stub.StopRollout(stop(name=rollout.name, outcome=stop.OUTCOME_ROLL_BACK))
    assert ended.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert production(running) == THREE
    until(lambda: ask(running).model_version == THREE, "the alias has not moved")
    moved = start(running, TWO)
    alias = model_pb2.SetAliasRequest(name=ALIAS, model_version=ONE)
    running.stub(model_pb2_grpc.ModelServiceStub).SetAlias(alias)
    assert events(running, moved)[-1].kind == rollout_pb2.RolloutEvent.KIND_ENDED
    assert [one.name for one in stub.ListRollouts(rollout_pb2.ListRolloutsRequest()).rollouts] == [
        moved.name,
        rollout.name,
    ]


def test_replicas_follow_and_one_decides(home: Path) -> None:
    """Two servers on one database: predictions of one are told true at the other, and there is one decision."""
    with serving(home) as one, serving(home) as two:
        rollout = started(one, TWO)
        until(lambda: TWO in {ask(two).model_version for _ in range(10)}, "the other replica does not follow")
        draw = random.Random(2)
        for _ in range(170):
            response = ask(two, ("luthier-key", str(draw.random())))
            tell(one, response.prediction_id, draw.gauss(0, 0.3))
        seen = events(two, rollout)
        assert [event.kind for event in seen] == [
            rollout_pb2.RolloutEvent.KIND_STARTED,
            rollout_pb2.RolloutEvent.KIND_ROLLED_BACK,
        ]
        until(lambda: {ask(two).model_version for _ in range(10)} == {ONE}, "the other replica does not follow")
