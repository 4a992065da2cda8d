"""Resources in the database, written by several transactions at once as several servers do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pytest
import sqlalchemy as sa

from luthier.bases import Catalogue
from luthier.database import Database
from luthier.errors import AlreadyExists, FailedPrecondition, NotFound
from luthier.registry import Registry
from luthier.v1 import dataset_pb2, evaluation_pb2, model_pb2
from tiny_entry import HUB, entry

S = TypeVar("S")
T = TypeVar("T")
TASK = "text-classification"


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database)


def at_once(database: Database, first: Callable[[sa.Connection], S], second: Callable[[], T]) -> tuple[S, Future[T]]:
    """Begins `second` while the transaction of `first` is open, which it has to wait for; what both came to."""
    with ThreadPoolExecutor(1) as pool:
        with database.write() as connection:
            done = first(connection)
            begun = threading.Event()
            later = pool.submit(lambda: (begun.set(), second())[1])
            begun.wait()
            with pytest.raises(TimeoutError):
                later.result(timeout=0.3)
        later.exception()  # Waits for it.
        return done, later


def in_a_transaction(database: Database, work: Callable[[sa.Connection], T]) -> Callable[[], T]:
    def run() -> T:
        with database.write() as connection:
            return work(connection)

    return run


def publish(registry: Registry, operation: str) -> Callable[[sa.Connection], model_pb2.ModelVersion]:
    version = model_pb2.ModelVersion(task=TASK, digest=f"digest of {operation}")
    return lambda connection: registry.add_model_version(connection, "m", version, operation)


def published(database: Database, registry: Registry, operation: str) -> model_pb2.ModelVersion:
    return in_a_transaction(database, publish(registry, operation))()


def test_of_two_that_publish_the_first_version_of_a_model_one_is_the_second(
    database: Database, registry: Registry
) -> None:
    one, other = at_once(database, publish(registry, "a"), in_a_transaction(database, publish(registry, "b")))
    assert (one.name, other.result().name) == ("models/m/versions/1", "models/m/versions/2")
    assert [alias.model_version for alias in registry.model("m").aliases] == [one.name]


def test_of_two_that_make_a_data_set_one_makes_its_second_version(database: Database, registry: Registry) -> None:
    def made(digest: str) -> Callable[[sa.Connection], dataset_pb2.DatasetVersion]:
        version = dataset_pb2.DatasetVersion(task=TASK, digest=digest)
        return lambda connection: registry.add_dataset_version(connection, "d", version)

    one, other = at_once(database, made("a"), in_a_transaction(database, made("b")))
    assert (one.name, other.result().name) == ("datasets/d/versions/1", "datasets/d/versions/2")


def test_a_new_alias_that_two_set_is_where_the_later_points_it(database: Database, registry: Registry) -> None:
    for operation in ("a", "b"):
        published(database, registry, operation)
    point = sa.text("INSERT INTO aliases (model, alias, number) VALUES ('m', 'next', 1)")
    at_once(database, lambda connection: connection.execute(point), lambda: registry.set_alias("m", "next", 2))
    assert registry.resolve("models/m/aliases/next", "model") == ("m", 2)


def test_a_version_that_an_alias_is_being_pointed_at_is_not_deleted(database: Database, registry: Registry) -> None:
    for operation in ("a", "b"):
        published(database, registry, operation)
    # What SetAlias does, up to its end.
    point = sa.text("INSERT INTO aliases (model, alias, number) VALUES ('m', 'next', 2)")
    _, deletion = at_once(
        database, lambda connection: connection.execute(point), lambda: registry.delete_model_version("m", 2)
    )
    with pytest.raises(FailedPrecondition, match="the alias next points at it"):
        deletion.result()


def test_what_names_a_version_that_is_gone_is_not_found(database: Database, registry: Registry) -> None:
    version = published(database, registry, "a")
    evaluation = evaluation_pb2.Evaluation(model_version=version.name, dataset_version="datasets/d/versions/1")
    registry.delete_model("m")
    with pytest.raises(NotFound, match=version.name):
        registry.set_alias("m", "next", 1)
    with pytest.raises(NotFound, match=version.name), database.write() as connection:
        registry.add_evaluation(connection, "e", evaluation)


def test_of_two_imports_as_one_base_the_second_is_refused(database: Database) -> None:
    catalogue = Catalogue.load(database=database)

    def add(connection: sa.Connection) -> None:
        catalogue.add(connection, entry(HUB))

    _, other = at_once(database, add, in_a_transaction(database, add))
    with pytest.raises(AlreadyExists):
        other.result()
