"""Predictions that are kept, and feedback on them."""

from __future__ import annotations

import threading
import time

import pytest
from google.protobuf.any_pb2 import Any

from luthier import journal as module
from luthier.database import Database
from luthier.errors import NotFound
from luthier.journal import Entry, Journal, made_at, new_id
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb

VERSION = "models/m/versions/1"
ALIAS = "models/m/aliases/production"


def entry(count: int = 1, **more: str) -> Entry:
    """A call's predictions, with their inputs."""
    instances = [pb.Instance(text=f"text {i}") for i in range(count)]
    return Entry(new_id(), VERSION, ALIAS, instances, [pb.Prediction(label="ham")] * count, **more)


def packed(label: str) -> Any:
    message = Any()
    message.Pack(pb.Example(label=label))
    return message


def test_what_was_offered_can_be_found_with_its_inputs(database: Database) -> None:
    journal = Journal(database)
    one = entry(2)
    assert journal.offer(one)
    [found] = journal.find(one.id, 1)
    assert (found.id, found.index, found.version, found.alias) == (one.id, 1, VERSION, ALIAS)
    instance, prediction = pb.Instance(), pb.Prediction()
    assert found.instance
    assert found.instance.Unpack(instance)
    assert found.prediction.Unpack(prediction)
    assert (instance.text, prediction.label, found.label, found.value) == ("text 1", "ham", None, None)
    assert abs(found.create_time - time.time()) < 5


def test_feedback_replaces_and_repeats(database: Database) -> None:
    journal = Journal(database)
    one = entry()
    journal.offer(one)
    [found] = journal.find(one.id, 0)
    assert not journal.label(found, [packed("ham")], 1.0)
    assert not journal.label(found, [packed("ham")], 1.0)
    assert journal.label(found, [packed("spam")], 0.0)
    [after] = journal.find(one.id, 0)
    assert (list(after.labels), after.value) == ([packed("spam")], 0.0)


def test_windows_are_of_a_version_and_newest_first(database: Database) -> None:
    journal = Journal(database)
    entries = [entry() for _ in range(5)]
    for one in entries:
        journal.offer(one)
    journal.offer(entry()._replace(version="models/m/versions/2"))
    journal.flush()
    now = time.time()
    assert [one.id for one in journal.window(VERSION, now - 60, now + 60, 3)] == [one.id for one in entries[:1:-1]]
    assert journal.window(VERSION, now + 60, now + 120, 3) == []


def test_callers_are_counted_once_and_keyless_predictions_each(database: Database) -> None:
    journal = Journal(database)
    for caller in ("a", "a", "b", "", ""):
        one = entry(rollout="r", caller=caller)
        journal.offer(one)
        [found] = journal.find(one.id, 0)
        journal.label(found, [packed("ham")], 1.0)
    assert journal.num_labels("r") == {VERSION: (5, 4)}
    assert len(journal.labelled("r", VERSION, 3)) == 3


def test_a_full_queue_drops_and_counts_and_never_waits(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    journal = Journal(database)
    taken = [journal.offer(entry(2)) for _ in range(15)]
    assert taken == [True] * 10 + [False] * 5
    assert journal.dropped == 10
    journal.flush()
    assert journal.offer(entry())


def test_the_bytes_that_wait_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    journal = Journal(database)
    large = entry()._replace(instances=[pb.Instance(text="x" * 600)])
    assert [journal.offer(large), journal.offer(large)] == [True, False]
    journal.flush()
    assert journal.offer(large._replace(id=new_id()))


def test_the_thread_writes_by_itself(database: Database) -> None:
    journal = Journal(database)
    journal.start()
    one = entry()
    journal.offer(one)
    deadline = time.monotonic() + 10
    other = Journal(database)
    while not other.window(VERSION, 0, time.time() + 60, 1):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    last = entry()
    journal.offer(last)
    journal.stop()
    assert [found.id for found in other.window(VERSION, 0, time.time() + 60, 5)] == [last.id, one.id]


def test_another_replicas_prediction_is_waited_for(database: Database) -> None:
    one = entry()
    here, there = Journal(database), Journal(database)
    there.offer(one)
    threading.Timer(0.3, there.flush).start()
    assert here.find(one.id, 0)[0].id == one.id


def test_what_is_not_there_is_said_why(database: Database) -> None:
    journal = Journal(database, keep_days=7)
    old = f"{int(time.time() - 8 * 24 * 3600):08x}{'0' * 16}"
    with pytest.raises(NotFound, match="kept for 7 days"):
        journal.find(old, 0)
    with pytest.raises(NotFound, match="it was not recorded"):
        journal.find(f"{int(time.time() - 60):08x}{'0' * 16}", 0)
    with pytest.raises(NotFound, match="no prediction_id"):
        journal.find("nonsense", 0)


def test_old_predictions_go_and_the_oldest_beyond_the_most(database: Database) -> None:
    journal = Journal(database)
    entries = [entry() for _ in range(6)]
    for one in entries:
        journal.offer(one)
    journal.flush()
    assert journal.forget(0.0, 0) == 0
    assert journal.forget(0.0, 4) == 2
    assert [one.id for one in journal.window(VERSION, 0, time.time() + 60, 9)] == [one.id for one in entries[:1:-1]]
    assert journal.forget(time.time() + 60, 0) == 4


def test_ids_differ_and_tell_their_time() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(abs(made_at(id) - time.time()) < 5 for id in ids)
