"""The queue of long-running operations: a table, with leases and attempts.

Whoever runs an operation holds a lease on it, prolonged by heartbeats. A lease that ran out is given to another worker
as the next attempt; whatever the former one still does is refused, because every write of a worker names its attempt.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa
from google.longrunning import operations_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, status_pb2

from luthier.access import quotas
from luthier.access.principal import actor
from luthier.database import Database, bump, events, insert_or_skip, now, operations
from luthier.errors import (
    AlreadyExists,
    Cancelled,
    FailedPrecondition,
    InvalidArgument,
    LuthierError,
    NotFound,
    Unavailable,
)
from luthier.v1 import base_pb2, batch_prediction_pb2, dataset_pb2, evaluation_pb2, model_pb2, operation_pb2
from luthier.v1.operation_pb2 import OperationMetadata

Row = sa.Row[tuple[Any, ...]]
Kind: TypeAlias = OperationMetadata.Kind.ValueType
State: TypeAlias = OperationMetadata.State.ValueType

Request: TypeAlias = (
    dataset_pb2.CreateDatasetRequest
    | model_pb2.FineTuneRequest
    | model_pb2.FineTuneFromFeedbackRequest
    | evaluation_pb2.EvaluateRequest
    | base_pb2.PullBaseRequest
    | base_pb2.ImportBaseRequest
    | batch_prediction_pb2.BatchPredictRequest
)
"""What starts an operation; each has a `request_id`."""

MAX_FAULTS = 3
"""After so many attempts in turn that ended without a word, such as by a killed process, and saved nothing that a next
one could go on from, an operation fails."""

POSTPONED_S = 10.0
"""How long an operation waits for a store that is away before another attempt."""

MOST_REQUEST_ID = 200
"""Characters of a request id."""

WAITING = (OperationMetadata.STATE_PENDING, OperationMetadata.STATE_PAUSED)
OPEN = (*WAITING, OperationMetadata.STATE_RUNNING)

Wish: TypeAlias = Literal["", "cancel", "pause"]
"""What someone asked of a running operation."""


class LeaseLost(LuthierError):
    """Another attempt has taken the operation over, or it has ended."""


@dataclass(frozen=True)
class Claim:
    """The right to run one attempt at an operation."""

    operation: str
    attempt: int
    kind: Kind


class Operations:
    """Operations in the database. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Asking for work.

    def repeated(self, kind: Kind, asked: Request) -> operations_pb2.Operation | None:
        """The operation that this request started when it came before, by its `request_id`; None where it is new.

        Raises AlreadyExists where the id came with another request, InvalidArgument where it is none.
        """
        if not _request_id(asked):
            return None
        query = sa.select(operations).where(operations.c.request_id == asked.request_id)
        with self._database.read() as connection:
            found = connection.execute(query).first()
        if found is None:
            return None
        if found.fingerprint != _fingerprint(kind, asked):
            raise AlreadyExists(f"request_id {asked.request_id!r} was used for another request")
        return to_proto(found)

    def submit(
        self, kind: Kind, target: str, asked: Request, completed: Message | None = None
    ) -> operations_pb2.Operation:
        """Records an operation, durably, before it returns; or returns the one that the same request started before.

        `completed` is what a worker gets, where it differs from what was asked: the request with its defaults.
        Raises AlreadyExists where the request's id came with another request, QuotaExceeded.
        """
        id, time = uuid.uuid4().hex, now()
        row = {
            "id": id,
            "kind": kind,
            "state": OperationMetadata.STATE_PENDING,
            "target": target,
            "request": (completed or asked).SerializeToString(deterministic=True),
            "request_id": _request_id(asked),
            "fingerprint": _fingerprint(kind, asked),
            "attempt": 0,
            "faults": 0,
            "lease_until": 0.0,
            "cancel_requested": False,
            "pause_requested": False,
            "last_sequence": 0,
            "progress": b"",
            "create_time": time,
            "update_time": time,
            "principal": actor(),
        }
        with self._database.write() as connection:
            # Where two replicas insert at once, the second waits for the first and then inserts nothing.
            inserted = insert_or_skip(connection, operations, row)
            if inserted:
                quotas.check_operations(connection, beside=id)
                _append(connection, id, [operation_pb2.OperationEvent(state=OperationMetadata.STATE_PENDING)])
        return self.get(id) if inserted else self.repeated(kind, asked) or self.submit(kind, target, asked, completed)

    def get(self, id: str) -> operations_pb2.Operation:
        """Returns an operation or raises NotFound."""
        with self._database.read() as connection:
            return to_proto(_row(connection, id))

    def page(self, after: tuple[float, str] | None, size: int) -> Sequence[Row]:
        """Rows of operations, newest first, from behind the given time and id on."""
        query = sa.select(operations).order_by(operations.c.create_time.desc(), operations.c.id).limit(size)
        if after:
            time, id = after
            query = query.where(
                (operations.c.create_time < time) | ((operations.c.create_time == time) & (operations.c.id > id))
            )
        with self._database.read() as connection:
            return connection.execute(query).all()

    def cancel(self, id: str) -> None:
        """Ends a waiting operation at once, and asks a running one to end. One that has ended stays as it is."""
        with self._database.write() as connection:
            row = _row(connection, id, lock=True)
            if row.state in WAITING:
                _end(connection, row, OperationMetadata.STATE_CANCELLED, error=Cancelled("cancelled").status())
            elif row.state == OperationMetadata.STATE_RUNNING:
                _update(connection, id, cancel_requested=True)
                bump(connection, "operations")

    def pause(self, id: str) -> operations_pb2.Operation:
        """Holds a waiting operation at once, and asks the worker of a running one to stop.

        Raises FailedPrecondition where it has ended.
        """
        with self._database.write() as connection:
            row = _open(connection, id)
            if row.state == OperationMetadata.STATE_PENDING:
                _turn(connection, id, OperationMetadata.STATE_PAUSED)
            elif row.state == OperationMetadata.STATE_RUNNING:
                _update(connection, id, pause_requested=True)
                bump(connection, "operations")
        return self.get(id)

    def resume(self, id: str) -> operations_pb2.Operation:
        """Puts a held operation back into the queue; raises FailedPrecondition where it has ended."""
        with self._database.write() as connection:
            row = _open(connection, id)
            _update(connection, id, pause_requested=False)
            if row.state == OperationMetadata.STATE_PAUSED:
                _turn(connection, id, OperationMetadata.STATE_PENDING)
        return self.get(id)

    def delete(self, id: str) -> None:
        """Forgets an operation that has ended; raises FailedPrecondition for another."""
        with self._database.write() as connection:
            row = _row(connection, id, lock=True)
            if row.state in OPEN:
                raise FailedPrecondition("the operation has not ended; cancel it first")
            connection.execute(operations.delete().where(operations.c.id == id))

    def forget(self, before: float) -> int:
        """Deletes all that ended before a time; returns how many."""
        query = operations.delete().where(operations.c.state.not_in(OPEN), operations.c.update_time < before)
        with self._database.write() as connection:
            return connection.execute(query).rowcount

    def events(self, id: str, after: int) -> list[operation_pb2.OperationEvent]:
        """The events of an operation behind a sequence number, in order; raises NotFound."""
        query = (
            sa.select(events.c.record)
            .where(events.c.operation == id, events.c.sequence > after)
            .order_by(events.c.sequence)
        )
        with self._database.read() as connection:
            _row(connection, id)
            return [operation_pb2.OperationEvent.FromString(row.record) for row in connection.execute(query)]

    def open(self) -> set[str]:
        """The ids of all operations that have not ended."""
        with self._database.read() as connection:
            return set(connection.execute(sa.select(operations.c.id).where(operations.c.state.in_(OPEN))).scalars())

    def count(self) -> dict[str, int]:
        """How many there are in each state, by its name in small letters; raises Unavailable without a database."""
        query = sa.select(operations.c.state, sa.func.count()).group_by(operations.c.state)
        try:
            with self._database.read() as connection:
                found: dict[int, int] = {row[0]: row[1] for row in connection.execute(query)}
        except sa.exc.OperationalError as error:
            raise Unavailable("the database does not answer") from error
        states = [value for value in OperationMetadata.State.values() if value]
        return {OperationMetadata.State.Name(state)[len("STATE_") :].lower(): found.get(state, 0) for state in states}

    # Doing it.

    def claim(self, kinds: Iterable[Kind], lease_s: float) -> Claim | None:
        """Takes up the oldest operation that waits, or whose worker fell silent; None where there is none."""
        due = (OperationMetadata.STATE_PENDING, OperationMetadata.STATE_RUNNING)
        query = (
            sa.select(operations)
            .where(operations.c.state.in_(due), operations.c.lease_until < now(), operations.c.kind.in_(list(kinds)))
            .order_by(operations.c.create_time)
            .limit(1)
        )
        with self._database.read() as connection:
            if connection.execute(query).first() is None:
                return None
        with self._database.write() as connection:
            row = connection.execute(query.with_for_update(skip_locked=True)).first()
            if row is None:
                return None
            if row.cancel_requested:
                _end(connection, row, OperationMetadata.STATE_CANCELLED, error=Cancelled("cancelled").status())
                return None
            if row.pause_requested:
                _turn(connection, row.id, OperationMetadata.STATE_PAUSED)
                return None
            faults = row.faults + (row.state == OperationMetadata.STATE_RUNNING)
            if faults >= MAX_FAULTS:
                error = Unavailable(
                    f"gave up: {faults} workers in turn died or fell silent at it; where the kernel ended them for "
                    "want of memory, a smaller batch helps"
                )
                _end(connection, row, OperationMetadata.STATE_FAILED, error=error.status())
                return None
            _update(
                connection,
                row.id,
                state=OperationMetadata.STATE_RUNNING,
                attempt=row.attempt + 1,
                faults=faults,
                lease_until=now() + lease_s,
            )
            _append(connection, row.id, [operation_pb2.OperationEvent(state=OperationMetadata.STATE_RUNNING)])
            return Claim(row.id, row.attempt + 1, row.kind)

    def request(self, claim: Claim, kind: type[Message]) -> Message:
        """The request of a claimed operation."""
        with self._database.read() as connection:
            return kind.FromString(_claimed(connection, claim).request)

    def heartbeat(self, claim: Claim, lease_s: float) -> Wish:
        """Prolongs the lease; returns what someone asked for. Raises LeaseLost."""
        with self._database.write() as connection:
            row = _claimed(connection, claim)
            connection.execute(
                operations.update().where(operations.c.id == claim.operation).values(lease_until=now() + lease_s)
            )
            return "cancel" if row.cancel_requested else "pause" if row.pause_requested else ""

    def emit(self, claim: Claim, happened: Sequence[operation_pb2.OperationEvent]) -> None:
        """Appends events; raises LeaseLost."""
        with self._database.write() as connection:
            _claimed(connection, claim)
            for event in reversed(happened):
                if event.HasField("progress"):
                    _update(connection, claim.operation, progress=event.progress.SerializeToString())
                    break
            if any(event.HasField("checkpoint") for event in happened):
                _update(connection, claim.operation, faults=0)
            _append(connection, claim.operation, happened)

    def succeed(self, connection: sa.Connection, claim: Claim, response: Message) -> None:
        """Ends an operation with its response, in the transaction that publishes it; LeaseLost undoes both.

        The row is locked first, so that of two attempts only the one that holds the claim gets here.
        """
        packed = AnyMessage()
        packed.Pack(response)
        _end(connection, _claimed(connection, claim), OperationMetadata.STATE_SUCCEEDED, response=packed)

    def check(self, connection: sa.Connection, claim: Claim) -> None:
        """Locks the operation for the rest of this transaction; raises LeaseLost where the claim no longer holds."""
        _claimed(connection, claim)

    def fail(self, claim: Claim, error: status_pb2.Status) -> None:
        """Ends an operation with an error, or as cancelled where the error says so; raises LeaseLost."""
        cancelled = error.code == code_pb2.CANCELLED
        state = OperationMetadata.STATE_CANCELLED if cancelled else OperationMetadata.STATE_FAILED
        with self._database.write() as connection:
            _end(connection, _claimed(connection, claim), state, error=error)

    def hold(self, claim: Claim) -> None:
        """Gives an operation back that was to be paused: it is held, or waits where that was withdrawn meanwhile.

        Raises LeaseLost.
        """
        with self._database.write() as connection:
            row = _claimed(connection, claim)
            paused, pending = OperationMetadata.STATE_PAUSED, OperationMetadata.STATE_PENDING
            _turn(connection, row.id, paused if row.pause_requested else pending)

    def postpone(self, claim: Claim, why: str) -> None:
        """Gives an operation back that cannot be done for now. It waits a while before another attempt, and this one
        is not counted as a fault, however many follow. Raises LeaseLost.
        """
        message = f"{why}; another attempt follows in {POSTPONED_S:.0f} s"
        with self._database.write() as connection:
            row = _claimed(connection, claim)
            _append(connection, row.id, [operation_pb2.OperationEvent(message=message)])
            if row.pause_requested:
                _turn(connection, row.id, OperationMetadata.STATE_PAUSED)
            else:
                _turn(connection, row.id, OperationMetadata.STATE_PENDING, not_before=now() + POSTPONED_S)

    def release(self, claim: Claim, *, lost: bool) -> None:
        """Gives an operation back for another attempt, at once. Where it was not `lost` to a fault, as when a server is
        shut down, it is not counted as one."""
        with self._database.write() as connection:
            try:
                row = _claimed(connection, claim)
            except (LeaseLost, NotFound):  # It has ended, and may have been deleted since.
                return
            state = OperationMetadata.STATE_RUNNING if lost else OperationMetadata.STATE_PENDING
            _update(connection, row.id, state=state, lease_until=0.0)
            _append(connection, row.id, [operation_pb2.OperationEvent(message="given back for another attempt")])
            if row.pause_requested:
                _turn(connection, row.id, OperationMetadata.STATE_PAUSED)


def _request_id(asked: Request) -> str | None:
    """The id of a request, None where it has none; raises InvalidArgument."""
    # Not every database takes every character.
    if not asked.request_id.isprintable() or len(asked.request_id) > MOST_REQUEST_ID:
        why = f"it has other than printable characters, or more than {MOST_REQUEST_ID}"
        raise InvalidArgument({"request_id": why})
    return asked.request_id or None


def to_proto(row: Row) -> operations_pb2.Operation:
    """A row as google.longrunning.Operation."""
    metadata = OperationMetadata(
        kind=row.kind,
        state=row.state,
        target=row.target,
        attempt=row.attempt,
        progress=operation_pb2.Progress.FromString(row.progress),
        create_time=timestamp(row.create_time),
        update_time=timestamp(row.update_time),
    )
    operation = operations_pb2.Operation(name=f"operations/{row.id}", done=row.state not in OPEN)
    operation.metadata.Pack(metadata)
    if row.response is not None:
        operation.response.ParseFromString(row.response)
    elif row.error is not None:
        operation.error.ParseFromString(row.error)
    return operation


def timestamp(seconds: float) -> Timestamp:
    """Seconds since 1970 as a Timestamp."""
    stamp = Timestamp()
    stamp.FromMicroseconds(int(seconds * 1e6))
    return stamp


def _fingerprint(kind: Kind, asked: Request) -> str:
    """Tells one request from another."""
    return hashlib.sha256(bytes([kind]) + asked.SerializeToString(deterministic=True)).hexdigest()


def _row(connection: sa.Connection, id: str, *, lock: bool = False) -> Row:
    query = sa.select(operations).where(operations.c.id == id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"operations/{id}")
    return row


def _open(connection: sa.Connection, id: str) -> Row:
    row = _row(connection, id, lock=True)
    if row.state not in OPEN:
        raise FailedPrecondition(f"operations/{id} has ended")
    return row


def _claimed(connection: sa.Connection, claim: Claim) -> Row:
    row = _row(connection, claim.operation, lock=True)
    if row.attempt != claim.attempt or row.state != OperationMetadata.STATE_RUNNING:
        raise LeaseLost(f"attempt {claim.attempt} at operations/{claim.operation} no longer holds")
    return row


def _update(connection: sa.Connection, id: str, **values: object) -> None:
    connection.execute(operations.update().where(operations.c.id == id).values(update_time=now(), **values))


def _turn(connection: sa.Connection, id: str, state: State, *, not_before: float = 0.0) -> None:
    """Puts an operation into a state that is not its last and in which it is nobody's."""
    _update(connection, id, state=state, lease_until=not_before)
    _append(connection, id, [operation_pb2.OperationEvent(state=state)])


def _end(
    connection: sa.Connection,
    row: Row,
    state: State,
    *,
    response: AnyMessage | None = None,
    error: status_pb2.Status | None = None,
) -> None:
    """Puts an operation into a terminal state; its last event carries it whole."""
    _update(
        connection,
        row.id,
        state=state,
        response=response.SerializeToString() if response else None,
        error=error.SerializeToString() if error else None,
    )
    done = to_proto(_row(connection, row.id))
    _append(connection, row.id, [operation_pb2.OperationEvent(state=state), operation_pb2.OperationEvent(done=done)])


def _append(connection: sa.Connection, id: str, happened: Sequence[operation_pb2.OperationEvent]) -> None:
    first = connection.execute(sa.select(operations.c.last_sequence).where(operations.c.id == id)).scalar_one() + 1
    time = timestamp(now())
    rows = []
    for sequence, event in enumerate(happened, first):
        event.sequence = sequence
        event.time.CopyFrom(time)
        rows.append({"operation": id, "sequence": sequence, "record": event.SerializeToString()})
    connection.execute(events.insert(), rows)
    connection.execute(operations.update().where(operations.c.id == id).values(last_sequence=first + len(rows) - 1))
    bump(connection, "operations")
