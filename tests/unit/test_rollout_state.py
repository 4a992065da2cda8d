"""Rollouts in the database: what several servers do at once is done once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from luthier.database import Database
from luthier.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from luthier.registry import Registry
from luthier.rollouts import Rollouts
from luthier.v1 import model_pb2
from luthier.v1 import rollout_pb2 as pb

ALIAS = "models/m/aliases/production"
ONE, TWO, THREE = (f"models/m/versions/{number}" for number in (1, 2, 3))


@pytest.fixture
def rollouts(database: Database) -> Rollouts:
    """Of a model with three versions."""
    registry = Registry(database)
    for number in (1, 2, 3):
        with database.write() as connection:
            version = model_pb2.ModelVersion(task="t", digest=f"d{number}")
            registry.add_model_version(connection, "m", version, f"o{number}")
    return Rollouts(database)


def asked(candidate: str = TWO, percent: float = 10, **more: object) -> pb.StartRolloutRequest:
    return pb.StartRolloutRequest(alias=ALIAS, candidate=candidate, percent=percent, **more)  # type: ignore[arg-type]


def id_of(rollout: pb.Rollout) -> str:
    return rollout.name.partition("/")[2]


def production(database: Database) -> str:
    return Registry(database).model("m").aliases[0].model_version


def kinds(rollouts: Rollouts, id: str) -> list[str]:
    return [pb.RolloutEvent.Kind.Name(event.kind).removeprefix("KIND_") for event in rollouts.events(id, 0)]


def test_fifty_decisions_at_once_are_one(rollouts: Rollouts, database: Database) -> None:
    """Half of them would promote, half roll back, all at the same look."""
    id = id_of(rollouts.start(asked()))
    comparison = pb.RolloutComparison(next_look=100)

    def decide(number: int) -> pb.Rollout:
        decision: Callable[..., pb.Rollout] = rollouts.promote if number % 2 else rollouts.roll_back
        return decision(id, f"number {number}", comparison, 1)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(decide, range(50)))
    found = kinds(rollouts, id)
    assert len(found) == 2
    assert (found[1] == "PROMOTED") == (production(database) == TWO)
    rollout = rollouts.get(id)
    assert rollout.reason == rollouts.events(id, 1)[0].message
    assert rollouts.looks(id) == (1, 100)


def test_fifty_hands_at_once_are_one(rollouts: Rollouts, database: Database) -> None:
    """Half of them would promote, half roll back; who comes too late with the other is told."""
    id = id_of(rollouts.start(asked()))

    def decide(number: int) -> str:
        decision: Callable[..., pb.Rollout] = rollouts.promote if number % 2 else rollouts.roll_back
        try:
            return pb.Rollout.State.Name(decision(id, f"number {number}").state)
        except FailedPrecondition as error:
            return error.message

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(decide, range(50)))
    found = kinds(rollouts, id)
    assert len(found) == 2
    assert answers.count(f"STATE_{found[1]}") == 25
    assert sum("has ended: number" in answer for answer in answers) == 25
    assert (found[1] == "PROMOTED") == (production(database) == TWO)


def test_a_look_is_taken_once(rollouts: Rollouts) -> None:
    id = id_of(rollouts.start(asked()))
    for _ in range(3):
        rollouts.undecided(id, "not yet", pb.RolloutComparison(next_look=100), 1)
    assert kinds(rollouts, id) == ["STARTED", "UNDECIDED"]
    assert rollouts.looks(id) == (1, 100)
    assert rollouts.promote(id, "late", pb.RolloutComparison(next_look=100), 1).state == pb.Rollout.STATE_RUNNING
    assert rollouts.promote(id, "in time", pb.RolloutComparison(next_look=200), 2).state == pb.Rollout.STATE_PROMOTED


def test_an_alias_has_one_rollout_at_a_time(rollouts: Rollouts) -> None:
    first = rollouts.start(asked())
    assert rollouts.start(asked()).name == first.name
    with pytest.raises(AlreadyExists, match="another percent"):
        rollouts.start(asked(percent=20))
    rollouts.roll_back(id_of(first), "by hand")
    assert rollouts.start(asked(percent=20)).name != first.name


def test_what_cannot_be_started(rollouts: Rollouts) -> None:
    bad = {
        "candidate": asked("models/other/versions/1"),
        "percent": asked(percent=101),
        "shadows": asked(shadows=[TWO]),
        "rule.first_look": asked(rule=pb.RolloutRule(first_look=49)),
        "rule.error_probability": asked(rule=pb.RolloutRule(error_probability=0)),
        "recording.sample": asked(recording=model_pb2.Recording(sample=0)),
        "recording.mode": asked(recording=model_pb2.Recording(mode=model_pb2.Recording.MODE_OFF)),
    }
    for field, request in bad.items():
        with pytest.raises(InvalidArgument) as refused:
            rollouts.start(request)
        assert field in refused.value.violations
    with pytest.raises(InvalidArgument, match="names models/m/versions/1 already"):
        rollouts.start(asked(ONE))
    with pytest.raises(NotFound):
        rollouts.start(asked("models/m/versions/4"))
    assert rollouts.page("", None, 10) == []


def test_an_alias_that_is_moved_by_hand_ends_its_rollout(rollouts: Rollouts, database: Database) -> None:
    registry = Registry(database)
    id = id_of(rollouts.start(asked()))
    registry.set_alias("m", "production", 1)
    assert rollouts.get(id).state == pb.Rollout.STATE_RUNNING
    registry.set_alias("m", "production", 3)
    assert rollouts.get(id).state == pb.Rollout.STATE_ENDED
    assert rollouts.promote(id, "a look", pb.RolloutComparison(), 1).state == pb.Rollout.STATE_ENDED
    assert production(database) == THREE
    with pytest.raises(FailedPrecondition):
        rollouts.promote(id, "by hand")


def test_versions_in_a_rollout_stay(rollouts: Rollouts, database: Database) -> None:
    registry = Registry(database)
    id = id_of(rollouts.start(asked(shadows=[THREE])))
    for number in (2, 3):
        with pytest.raises(FailedPrecondition, match="rollout"):
            registry.delete_model_version("m", number)
    rollouts.roll_back(id, "by hand")
    registry.delete_model_version("m", 2)
    registry.delete_model("m")
    with pytest.raises(NotFound):
        rollouts.get(id)


def test_policies_say_what_is_special(rollouts: Rollouts, database: Database) -> None:
    registry = Registry(database)
    assert rollouts.policies() == {}
    inputs = model_pb2.Recording(mode=model_pb2.Recording.MODE_INPUTS)
    registry.set_alias("m", "production", 1, inputs)
    [(key, policy)] = rollouts.policies().items()
    assert (key, policy.recording, policy.split) == (("m", "production"), inputs, None)
    id = id_of(rollouts.start(asked(shadows=[THREE])))
    [policy] = rollouts.policies().values()
    assert policy.split
    assert policy.recording == inputs
    assert (policy.split.candidate, policy.split.share, policy.split.shadows) == (("m", 2), 0.1, (("m", 3),))
    rollouts.update(id, 30, True)
    [policy] = rollouts.policies().values()
    assert policy.split
    assert (policy.split.share, policy.split.shadows) == (0.0, ())
    rollouts.update(id, None, False)
    rollouts.promote(id, "by hand")
    [policy] = rollouts.policies().values()
    assert policy.split is None
    registry.set_alias("m", "production", 2, model_pb2.Recording(mode=model_pb2.Recording.MODE_OFF))
    assert rollouts.policies() == {}
