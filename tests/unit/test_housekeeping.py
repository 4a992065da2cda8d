"""What is done away with by and by, and what is not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from google.protobuf import empty_pb2

from luthier.access.audit import Audit
from luthier.database import Database, operations
from luthier.errors import NotFound
from luthier.housekeeping import DAY_S, Housekeeping
from luthier.journal import Entry, Journal, new_id
from luthier.operations import Operations
from luthier.registry import Registry
from luthier.store import Store, publish
from luthier.v1 import dataset_pb2, evaluation_pb2, model_pb2
from luthier.v1.operation_pb2 import OperationMetadata

KIND = OperationMetadata.KIND_CREATE_DATASET


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def housekeeping(database: Database, store: Store) -> Housekeeping:
    return Housekeeping(
        Registry(database), Operations(database), store, Audit(database), Journal(database), keep_operations_days=30
    )


def made(path: Path, days_old: float = 2) -> Path:
    """A folder with a file, or a file where the path has an ending, of that age."""
    if path.suffix:
        path.write_text("x", encoding="utf-8")
    else:
        path.mkdir()
        (path / "file").write_text("x", encoding="utf-8")
    os.utime(path, (time.time() - days_old * DAY_S,) * 2)
    return path


def test_old_files_that_nothing_names_go_and_no_others(
    database: Database, store: Store, housekeeping: Housekeeping
) -> None:
    registry = Registry(database)
    with database.write() as connection:
        registry.add_model_version(connection, "m", model_pb2.ModelVersion(task="t", digest="named"), "o")
        registry.add_dataset_version(connection, "d", dataset_pb2.DatasetVersion(task="t", digest="named"))
        named = evaluation_pb2.Evaluation(
            model_version="models/m/versions/1", dataset_version="datasets/d/versions/1", split="test"
        )
        registry.add_evaluation(connection, "named", named)
    operation = Operations(database).submit(KIND, "datasets/x", dataset_pb2.CreateDatasetRequest(dataset_id="x"))
    id = operation.name.partition("/")[2]
    kept = [made(path) for path in (store.bundle("named"), store.dataset("named"), store.report("named"))]
    kept += [made(store.predictions(id)), made(store.bundle("young"), days_old=0.5), made(store.bases / "pulled")]
    gone = [made(path) for path in (store.bundle("old"), store.dataset("old"), store.report("old"))]
    gone += [made(store.predictions("old"))]
    housekeeping.keep(time.time())
    assert [path for path in kept if not path.exists()] == []
    assert [path for path in gone if path.exists()] == []
    assert list((store.home / "work").iterdir()) == []


def test_what_is_published_again_at_that_moment_stays(store: Store) -> None:
    bundle = made(store.bundle("old"))
    publish(made(store.home / "work" / "again"), bundle)
    assert not store.discard(bundle, time.time() - DAY_S)
    assert (bundle / "file").exists()


def test_what_is_published_again_just_after_is_there(store: Store) -> None:
    bundle = made(store.bundle("old"))
    assert store.discard(bundle, time.time() - DAY_S)
    publish(made(store.home / "work" / "again"), bundle)
    assert (bundle / "file").exists()
    assert not store.discard(store.bundle("never"), time.time())


def test_operations_are_forgotten_some_time_after_their_end(database: Database, housekeeping: Housekeeping) -> None:
    queue = Operations(database)
    old, young, still = (
        queue.submit(KIND, "datasets/x", dataset_pb2.CreateDatasetRequest(dataset_id="x")).name.partition("/")[2]
        for _ in range(3)
    )
    queue.cancel(old)
    queue.cancel(young)
    with database.write() as connection:
        long_ago = operations.update().values(update_time=time.time() - 31 * DAY_S)
        connection.execute(long_ago.where(operations.c.id.in_([old, still])))
    housekeeping.keep(time.time())
    with pytest.raises(NotFound):
        queue.get(old)
    assert not queue.get(still).done
    assert queue.get(young).done
    with database.read() as connection:
        assert (
            connection.execute(sa.text("SELECT count(*) FROM events WHERE operation = :id"), {"id": old}).scalar() == 0
        )


def test_they_are_kept_for_good_where_that_is_asked(database: Database, store: Store) -> None:
    queue = Operations(database)
    id = queue.submit(KIND, "datasets/x", dataset_pb2.CreateDatasetRequest()).name.partition("/")[2]
    queue.cancel(id)
    Housekeeping(Registry(database), queue, store, Audit(database), Journal(database), keep_operations_days=0).keep(
        time.time() + 1000 * DAY_S
    )
    assert queue.get(id).done


def test_predictions_are_kept_for_some_days_and_no_more_than_some(database: Database, store: Store) -> None:
    journal = Journal(database)
    for _ in range(5):
        journal.offer(Entry(new_id(), "models/m/versions/1", "models/m/aliases/production", (), [empty_pb2.Empty()]))
    journal.flush()
    days = {"keep_operations_days": 0.0, "keep_predictions_days": 7.0}
    house = Housekeeping(
        Registry(database), Operations(database), store, Audit(database), journal, **days, most_predictions=3
    )

    def kept() -> int:
        return len(journal.window("models/m/versions/1", 0, time.time() + 60, 10))

    house.keep(time.time())
    assert kept() == 3
    house.keep(time.time() + 6 * DAY_S)
    assert kept() == 3
    house.keep(time.time() + 8 * DAY_S)
    assert kept() == 0


def test_uploads_are_kept_for_a_day(database: Database, store: Store, housekeeping: Housekeeping) -> None:
    registry = Registry(database)
    registry.add_upload("u", dataset_pb2.Upload(filename="a.csv", size_bytes=1, sha256="0" * 64))
    store.upload("u").write_text("x", encoding="utf-8")
    partial = made(store.home / "uploads" / "x.partial")
    housekeeping.keep(time.time())
    assert store.upload("u").exists()
    assert not partial.exists()
    housekeeping.keep(time.time() + 1.1 * DAY_S)
    assert not store.upload("u").exists()
    with pytest.raises(NotFound):
        registry.upload("u")
