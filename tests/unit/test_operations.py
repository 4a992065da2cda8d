"""The queue: one result for each operation, whoever runs it and however often."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from luthier.database import HEAD, Database, metadata
from luthier.errors import AlreadyExists, Cancelled, FailedPrecondition, InvalidArgument, NotFound
from luthier.operations import MAX_FAULTS, POSTPONED_S, LeaseLost, Operations
from luthier.v1 import dataset_pb2
from luthier.v1.operation_pb2 import Checkpoint, OperationEvent, OperationMetadata

KIND = OperationMetadata.KIND_CREATE_DATASET
REQUEST = dataset_pb2.CreateDatasetRequest(dataset_id="x")
ONCE = dataset_pb2.CreateDatasetRequest(dataset_id="x", request_id="once")
RESPONSE = dataset_pb2.DatasetVersion(name="datasets/x/versions/1")


@pytest.fixture
def operations(database: Database) -> Operations:
    return Operations(database)


def state(operations: Operations, id: str) -> OperationMetadata:
    message = OperationMetadata()
    assert operations.get(id).metadata.Unpack(message)
    return message


def test_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database.read() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == HEAD
        assert compare_metadata(context, metadata) == []


def test_fifty_submissions_with_one_request_id_are_one_operation(operations: Operations) -> None:
    with ThreadPoolExecutor(50) as pool:
        names = {
            future.result().name
            for future in [pool.submit(operations.submit, KIND, "datasets/x", ONCE) for _ in range(50)]
        }
    assert len(names) == 1


def test_a_request_id_belongs_to_one_request(operations: Operations) -> None:
    operations.submit(KIND, "datasets/x", ONCE)
    with pytest.raises(AlreadyExists):
        operations.submit(KIND, "datasets/y", dataset_pb2.CreateDatasetRequest(dataset_id="y", request_id="once"))


@pytest.mark.parametrize("id", ["nul\0", "a\n", "a" * 201])
def test_a_request_id_that_no_database_takes_is_none(operations: Operations, id: str) -> None:
    asked = dataset_pb2.CreateDatasetRequest(dataset_id="x", request_id=id)
    for ask in (lambda: operations.repeated(KIND, asked), lambda: operations.submit(KIND, "datasets/x", asked)):
        with pytest.raises(InvalidArgument):
            ask()


def test_each_operation_is_claimed_once(operations: Operations) -> None:
    for _ in range(20):
        operations.submit(KIND, "datasets/x", REQUEST)
    with ThreadPoolExecutor(4) as pool:
        claims = [future.result() for future in [pool.submit(operations.claim, [KIND], 60) for _ in range(30)]]
    taken = [claim.operation for claim in claims if claim]
    assert len(taken) == len(set(taken)) == 20


def test_a_stale_attempt_can_neither_publish_nor_speak(operations: Operations, database: Database) -> None:
    operations.submit(KIND, "datasets/x", REQUEST)
    stale = operations.claim([KIND], lease_s=-1)
    fresh = operations.claim([KIND], lease_s=60)
    assert stale
    assert fresh
    assert (stale.attempt, fresh.attempt) == (1, 2)
    with pytest.raises(LeaseLost):
        operations.emit(stale, [OperationEvent(message="too late")])
    with pytest.raises(LeaseLost):
        operations.heartbeat(stale, 60)

    def publish() -> None:
        with database.write() as connection:
            connection.execute(sa.text("UPDATE revisions SET value = 999 WHERE name = 'models'"))
            operations.succeed(connection, stale, RESPONSE)

    with pytest.raises(LeaseLost):
        publish()
    with database.read() as connection:
        # What the stale attempt wrote in the same transaction is gone with it.
        assert connection.execute(sa.text("SELECT value FROM revisions WHERE name = 'models'")).scalar() == 1
    with database.write() as connection:
        operations.succeed(connection, fresh, RESPONSE)
    with pytest.raises(LeaseLost), database.write() as connection:
        operations.succeed(connection, fresh, RESPONSE)
    assert state(operations, fresh.operation).state == OperationMetadata.STATE_SUCCEEDED


def test_an_attempt_that_saved_where_it_stood_is_no_fault(operations: Operations) -> None:
    operations.submit(KIND, "models/x", REQUEST)
    saved = OperationEvent(checkpoint=Checkpoint(step=7))
    for attempt in range(1, 3 * MAX_FAULTS):
        claim = operations.claim([KIND], lease_s=-1)
        assert claim is not None
        assert claim.attempt == attempt
        operations.emit(claim, [saved])
    for _ in range(MAX_FAULTS - 1):
        assert operations.claim([KIND], lease_s=-1)
    assert operations.claim([KIND], lease_s=-1) is None
    assert operations.get(claim.operation).done


def test_a_pause_holds_and_is_ended_by_resume_or_cancel(operations: Operations) -> None:
    id = operations.submit(KIND, "models/x", REQUEST).name.partition("/")[2]
    paused, pending, running = (
        OperationMetadata.STATE_PAUSED,
        OperationMetadata.STATE_PENDING,
        OperationMetadata.STATE_RUNNING,
    )
    operations.pause(id)
    assert state(operations, id).state == paused
    assert operations.claim([KIND], lease_s=10) is None
    operations.resume(id)
    claim = operations.claim([KIND], lease_s=10)
    assert claim is not None
    assert operations.heartbeat(claim, lease_s=10) == ""
    assert not operations.pause(id).done
    assert operations.heartbeat(claim, lease_s=10) == "pause"
    assert state(operations, id).state == running
    operations.hold(claim)
    assert state(operations, id).state == paused
    with pytest.raises(LeaseLost):
        operations.emit(claim, [OperationEvent(message="too late")])
    assert id in operations.open()
    operations.resume(id)

    withdrawn = operations.claim([KIND], lease_s=10)
    assert withdrawn is not None
    operations.pause(id)
    operations.resume(id)
    operations.hold(withdrawn)
    assert state(operations, id).state == pending

    silent = operations.claim([KIND], lease_s=-1)
    assert silent is not None
    operations.pause(id)
    assert operations.claim([KIND], lease_s=10) is None
    assert state(operations, id).state == paused
    operations.cancel(id)
    assert operations.get(id).done
    assert id not in operations.open()
    for turn in (operations.pause, operations.resume):
        with pytest.raises(FailedPrecondition, match="has ended"):
            turn(id)


def test_an_operation_whose_workers_die_fails_in_the_end(operations: Operations) -> None:
    operations.submit(KIND, "datasets/x", REQUEST)
    claims = []
    while claim := operations.claim([KIND], lease_s=-1):
        claims.append(claim)
    assert [claim.attempt for claim in claims] == list(range(1, MAX_FAULTS + 1))
    done = operations.get(claims[0].operation)
    assert done.done
    assert "gave up" in done.error.message


def test_giving_back_in_peace_is_no_fault(operations: Operations) -> None:
    operations.submit(KIND, "datasets/x", REQUEST)
    for attempt in range(1, 3 * MAX_FAULTS):
        claim = operations.claim([KIND], lease_s=60)
        assert claim
        assert claim.attempt == attempt
        operations.release(claim, lost=False)


def test_what_is_postponed_waits_and_counts_no_fault(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.time()
    monkeypatch.setattr("luthier.operations.now", lambda: clock)
    id = operations.submit(KIND, "datasets/x", REQUEST).name.partition("/")[2]
    for attempt in range(1, 3 * MAX_FAULTS):
        claim = operations.claim([KIND], lease_s=60)
        assert claim
        assert claim.attempt == attempt
        operations.postpone(claim, "the store is away")
        assert state(operations, id).state == OperationMetadata.STATE_PENDING
        with pytest.raises(LeaseLost):
            operations.heartbeat(claim, 60)
        clock += POSTPONED_S - 0.1
        assert operations.claim([KIND], lease_s=60) is None
        clock += 0.2
    said = [event.message for event in operations.events(id, 0) if event.message]
    assert said == ["the store is away; another attempt follows in 10 s"] * (3 * MAX_FAULTS - 1)
    # Someone who pauses and resumes it need not wait.
    claim = operations.claim([KIND], lease_s=60)
    assert claim
    operations.postpone(claim, "the store is away")
    operations.pause(id)
    operations.resume(id)
    claim = operations.claim([KIND], lease_s=60)
    assert claim
    operations.pause(id)
    operations.postpone(claim, "the store is away")
    assert state(operations, id).state == OperationMetadata.STATE_PAUSED


def test_what_was_deleted_at_its_end_cannot_be_given_back_and_disturbs_nobody(operations: Operations) -> None:
    id = operations.submit(KIND, "datasets/x", REQUEST).name.partition("/")[2]
    claim = operations.claim([KIND], 60)
    assert claim
    operations.fail(claim, Cancelled("cancelled").status())
    operations.delete(id)
    operations.release(claim, lost=True)
    with pytest.raises(NotFound):
        operations.get(id)


def test_a_waiting_operation_is_cancelled_at_once(operations: Operations) -> None:
    id = operations.submit(KIND, "datasets/x", REQUEST).name.partition("/")[2]
    operations.cancel(id)
    assert state(operations, id).state == OperationMetadata.STATE_CANCELLED
    assert operations.claim([KIND], 60) is None


def test_a_running_operation_is_asked_to_end(operations: Operations) -> None:
    id = operations.submit(KIND, "datasets/x", REQUEST).name.partition("/")[2]
    claim = operations.claim([KIND], 60)
    assert claim
    assert not operations.heartbeat(claim, 60)
    operations.cancel(id)
    assert operations.heartbeat(claim, 60)
    # Whoever held it dies before it can end it: the next to look ends it.
    operations.release(claim, lost=True)
    assert operations.claim([KIND], 60) is None
    assert state(operations, id).state == OperationMetadata.STATE_CANCELLED


def test_pages_go_through_all(operations: Operations) -> None:
    ids = [operations.submit(KIND, "datasets/x", REQUEST).name.partition("/")[2] for _ in range(7)]
    seen: list[str] = []
    after = None
    while page := operations.page(after, 3):
        seen += [row.id for row in page]
        after = (page[-1].create_time, page[-1].id)
    assert sorted(seen) == sorted(ids)


def test_a_foreign_page_token_is_refused() -> None:
    from luthier import paging

    assert paging.key_of(paging.token_of(1.5, "a"), float, str) == [1.5, "a"]
    for token in ("nonsense", "e30=", "\u00e9"):
        with pytest.raises(InvalidArgument):
            paging.key_of(token, float, str)
