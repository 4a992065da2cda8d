"""Rollouts on a real server: what is decided by feedback, while callers notice nothing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any as Anything

import grpc
import pytest
from google.protobuf.any_pb2 import Any

from luthier.database import Database
from luthier.journal import Journal
from luthier.oip.v2 import open_inference_pb2, open_inference_pb2_grpc
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
        until(lambda: len(load.answers) > 10 or bool(load.errors), "the load stands still")
    finally:
        ended.set()
        thread.join()
    assert not load.errors, load.errors[:3]
    assert not load.wrong


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


def feed(server: Server, count: int, draw: random.Random, equal: bool = False) -> int:
    """Asks for so many callers and tells what was true, until nothing is kept any more; with `equal`, versions err
    alike. Returns how often."""
    for number in range(count):
        response = ask(server, ("luthier-key", str(draw.random())))
        target = draw.gauss(0, 0.3) + (value_of(response) if equal else 0)
        try:
            tell(server, response.prediction_id, target)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return number
            raise
    return count


@pytest.mark.parametrize(("candidate", "kind"), [(TWO, "ROLLED_BACK"), (THREE, "PROMOTED")])
def test_feedback_decides_under_load(running: Server, candidate: str, kind: str) -> None:
    """A worse candidate is rolled back, a better one promoted, at the first look at 50 labels a side."""
    with loaded(running) as load:
        rollout = started(running, candidate)
        told = feed(running, 300, random.Random(0))
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
    assert told < 200, "it was not decided at the first look"
    assert figures[ONE].labels + figures[candidate].labels == told
    assert figures[ONE].value == pytest.approx(1.04, abs=0.1)
    assert figures[candidate].value == pytest.approx((VALUES[candidate] ** 2 + 0.09) ** 0.5, abs=0.1)
    assert all(side.lower < side.value < side.upper and not side.errors for side in after.sides)
    assert (after.comparison.lower > 0) == (kind == "PROMOTED")
    assert sum(side.calls for side in after.sides) >= told


def test_equal_versions_stay_undecided_under_load(running: Server) -> None:
    with loaded(running) as load:
        rollout = started(running, TWO)
        draw = random.Random(1)
        # The second look wants twice as many labels as there were at the first, whenever that was.
        for _ in range(40):
            feed(running, 50, draw, equal=True)
            if get(running, rollout).comparison.looks >= 2:
                break
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
        decided: list[rollout_pb2.RolloutEvent] = []
        watch = threading.Thread(target=lambda: decided.extend(events(two, rollout, 60)))
        watch.start()
        while not decided:
            # Some at a time: feedback on one that its replica is about to write waits for that.
            ids = [ask(two, ("luthier-key", str(draw.random()))).prediction_id for _ in range(40)]
            try:
                for id in ids:
                    tell(one, id, draw.gauss(0, 0.3))
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.NOT_FOUND  # noqa: PT017 - it is over
                break
        watch.join()
        seen = decided
        assert [event.kind for event in seen] == [
            rollout_pb2.RolloutEvent.KIND_STARTED,
            rollout_pb2.RolloutEvent.KIND_ROLLED_BACK,
        ]
        until(lambda: {ask(two).model_version for _ in range(10)} == {ONE}, "the other replica does not follow")


@pytest.mark.parametrize("mode", [model_pb2.Recording.MODE_PREDICTIONS, model_pb2.Recording.MODE_INPUTS])
def test_inputs_are_kept_where_alias_and_caller_allow(
    running: Server, mode: model_pb2.Recording.Mode.ValueType
) -> None:
    """What is kept is read from the database itself."""
    alias = model_pb2.SetAliasRequest(name=ALIAS, model_version=ONE, recording=model_pb2.Recording(mode=mode))
    running.stub(model_pb2_grpc.ModelServiceStub).SetAlias(alias)
    database = Database(f"sqlite:///{running.home / 'luthier.db'}")
    journal = Journal(database)

    def kept() -> dict[str, bool]:
        found = journal.window(ONE, 0, time.time() + 60, 100)
        return {one.id: one.instance is not None for one in found}

    until(lambda: bool(ask(running) and kept()), "nothing is kept")
    plain, without, off = (
        ask(running, *metadata).prediction_id
        for metadata in ((), (("luthier-record", "predictions"),), (("luthier-record", "off"),))
    )
    by_number = ask(running, model="m/1").prediction_id
    last = ask(running).prediction_id
    until(lambda: last in kept(), "the last is not kept")
    found = kept()
    database.close()
    assert found[plain] == (mode == model_pb2.Recording.MODE_INPUTS)
    assert found[without] is False
    assert off not in found
    assert by_number not in found
    with pytest.raises(grpc.RpcError) as refused:
        ask(running, ("luthier-record", "no"))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_feedback_is_answered_for_and_bad_feedback_refused(running: Server) -> None:
    mode = model_pb2.Recording.MODE_PREDICTIONS
    alias = model_pb2.SetAliasRequest(name=ALIAS, model_version=ONE, recording=model_pb2.Recording(mode=mode))
    running.stub(model_pb2_grpc.ModelServiceStub).SetAlias(alias)

    def recorded() -> bool:
        try:
            tell(running, ask(running).prediction_id, 1.0)
        except grpc.RpcError:
            return False
        return True

    until(recorded, "nothing is kept")
    id = ask(running, rows=3).prediction_id
    first = tell(running, id, 3.0, 2)
    assert (first.model_version, first.value, first.replaced) == (ONE, 2.0, False)
    assert not tell(running, id, 3.0, 2).replaced
    changed = tell(running, id, 1.5, 2)
    assert (changed.value, changed.replaced) == (0.5, True)
    stub = running.stub(prediction_pb2_grpc.PredictionServiceStub)
    wrong = Any()
    wrong.Pack(pb.Instance(features=[0]))
    right = Any()
    right.Pack(pb.Example(target=1.0))
    broken = Any(type_url=right.type_url, value=b"\xff")
    for labels in ([], [wrong], [broken], [right, right]):
        request = prediction_pb2.RecordFeedbackRequest(prediction_id=id, labels=labels)
        with pytest.raises(grpc.RpcError) as refused:
            stub.RecordFeedback(request)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, labels
    with pytest.raises(grpc.RpcError) as missing:
        tell(running, id, 1.0, 3)
    assert missing.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_other_ways_to_ask_name_their_predictions_too(running: Server) -> None:
    """The typed call of a response without the field goes on; tensors have the id as a parameter."""
    typed = running.stub(pytest.importorskip("acme_regression.v1.regression_pb2_grpc").RegressionServiceStub)
    request = pb.EstimateRequest(model="m", instances=[pb.Instance(features=[0])])
    assert typed.Estimate(request).model_version == ONE
    mode = model_pb2.Recording.MODE_INPUTS
    alias = model_pb2.SetAliasRequest(name=ALIAS, model_version=ONE, recording=model_pb2.Recording(mode=mode))
    running.stub(model_pb2_grpc.ModelServiceStub).SetAlias(alias)
    infer = open_inference_pb2_grpc.GRPCInferenceServiceStub(running.channel).ModelInfer
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(name="features", datatype="FP64", shape=[1, 1])
    tensor.contents.fp64_contents.append(0.0)
    asked = open_inference_pb2.ModelInferRequest(model_name="m.instances", id="mine", inputs=[tensor])

    def told() -> bool:
        answer = infer(asked)
        assert answer.id == "mine"
        try:
            return tell(running, answer.parameters["prediction_id"].string_param, 1.0).model_version == ONE
        except grpc.RpcError:
            return False

    until(told, "what tensors ask is not kept")
