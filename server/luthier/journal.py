"""What was predicted, kept for a while, and what turned out to be true.

Predictions are written behind the calls, by one thread, in batches. One that was answered may be lost with a process
that is killed within FLUSH_S; feedback is in the database before it is acknowledged.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from luthier import database as db
from luthier.database import Database
from luthier.errors import NotFound
from luthier.v1.prediction_pb2 import RecordFeedbackRequest

log = structlog.get_logger()

FLUSH_S = 0.25
"""Seconds after which a prediction is in the database, at most, as long as that answers."""
MOST_WAITING = 4096
"""Predictions that may wait to be written; further ones are dropped, and counted."""
MOST_BYTES = 64 * 2**20
"""Bytes of inputs among them."""
_BATCH = 500
_PAGE = 32
"""Predictions with their inputs that are held at once where many are looked at."""
_WARNED_S = 60.0


def new_id() -> str:
    """A name for a call's predictions: when it was made, in seconds, and 64 random bits. It says nothing else."""
    try:
        bits = _random.pop()
    except IndexError:
        # Many at once: asking the system lets go of the interpreter, for which each call would then wait again.
        fresh = os.urandom(8 * 512).hex()
        _random.extend([fresh[i : i + 16] for i in range(16, len(fresh), 16)])
        bits = fresh[:16]
    return f"{int(time.time()):08x}{bits}"


_random: list[str] = []
"""Random bits that no id has yet."""


def made_at(id: str) -> float:
    """When a prediction was made, by its id; 0 for what is no id."""
    try:
        return float(int(id[:8], 16)) if len(id) == 24 else 0.0
    except ValueError:
        return 0.0


class Entry(NamedTuple):
    """The predictions of one call, of one version."""

    id: str
    version: str
    """`models/{model}/versions/{number}`."""
    alias: str
    """`models/{model}/aliases/{alias}`."""
    instances: Sequence[Message]
    """Empty: they are not to be kept."""
    predictions: Sequence[Message]
    rollout: str = ""
    caller: str = ""


@dataclass(frozen=True)
class Recorded:
    """One prediction as it was kept."""

    id: str
    index: int
    """The instance's place in its call."""
    version: str
    """`models/{model}/versions/{number}`."""
    alias: str
    """`models/{model}/aliases/{alias}`, which the call named, or meant."""
    create_time: float
    """Seconds since 1970."""
    instance: AnyMessage | None
    """None where inputs were not kept."""
    prediction: AnyMessage
    labels: tuple[AnyMessage, ...]
    """What was true: messages of the task's example type; empty without feedback."""
    value: float | None
    """The task's primary metric of this prediction alone; None without feedback."""
    caller: str
    """The same for predictions of one caller in one rollout; empty where it gave no key."""

    @property
    def label(self) -> AnyMessage | None:
        """The first of the labels."""
        return self.labels[0] if self.labels else None


class Journal:
    """Predictions in the database, and the thread that writes them. Thread-safe."""

    def __init__(self, database: Database, keep_days: float = 30.0) -> None:
        """`keep_days` is what NOT_FOUND tells callers; 0: for good. Housekeeping calls `forget`."""
        self._database = database
        self._keep_days = keep_days
        self._waiting: deque[Entry] = deque()
        self._waiting_bytes = 0
        self._calls: Counter[tuple[str, str]] = Counter()
        self._errors: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._woken = threading.Event()
        self._stopped = False
        self.dropped = 0
        """Predictions that were not kept since the start, because too many waited."""
        self.told = 0
        """Feedback that this process has kept since the start."""
        self._warned = 0.0
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def stop(self) -> None:
        """Writes what waits, and ends."""
        self._stopped = True
        self._woken.set()
        self._thread.join()

    # Written behind the calls.

    def offer(self, entry: Entry) -> bool:
        """Takes predictions to be written by and by; False where too many wait, and these are not kept."""
        size = sum(instance.ByteSize() for instance in entry.instances)
        with self._lock:
            if len(self._waiting) >= MOST_WAITING or self._waiting_bytes + size > MOST_BYTES:
                self.dropped += len(entry.predictions)
                return False
            self._waiting.append(entry)
            self._waiting_bytes += size
        return True

    def count(self, rollout: str, version: str, seconds: float, *, failed: bool) -> None:
        """Counts a call that a version was asked in a rollout."""
        side = rollout, version
        with self._lock:
            self._calls[side] += 1
            self._errors[side] += failed
            self._seconds[side] = self._seconds.get(side, 0.0) + seconds

    def flush(self) -> None:
        """Writes all that was offered before."""
        with self._writing:
            while self._write():
                pass

    # Read, and told the truth.

    def find(self, id: str, index: int) -> list[Recorded]:
        """A prediction as the version that answered and shadows made it, the answer first; raises NotFound.

        Waits a moment for one that another replica may be about to write.
        """
        self.flush()
        until = made_at(id) + 4 * FLUSH_S + 1.0  # Ids are made in whole seconds.
        while not (found := self._rows(id, index)) and time.time() < until:
            time.sleep(FLUSH_S / 5)
        if found:
            return found
        made, kept = made_at(id), self._keep_days * 24 * 3600.0
        if not made:
            why = "it is no prediction_id of an answer"
        elif kept and time.time() - made > kept:
            why = f"predictions are kept for {self._keep_days:g} days"
        else:
            why = (
                "it was not recorded: its alias keeps none or not this one, or the call named a version or said not to"
            )
        raise NotFound(f"predictions/{id}/{index}", why)

    def label(self, of: Recorded, labels: Sequence[AnyMessage], value: float) -> bool:
        """Keeps what was true for a prediction, durably; returns whether other feedback was replaced. The same again
        changes nothing. Raises NotFound where it is no longer kept."""
        record = RecordFeedbackRequest(labels=labels).SerializeToString(deterministic=True)
        table = db.predictions
        where = (table.c.id == of.id) & (table.c.index == of.index) & (table.c.version == of.version)
        with self._database.write() as connection:
            row = connection.execute(sa.select(table.c.labels).where(where).with_for_update()).first()
            if row is None:
                raise NotFound(f"predictions/{of.id}/{of.index}", "it is no longer kept")
            if row.labels != record:
                connection.execute(table.update().where(where).values(labels=record, value=value))
        self.told += 1
        return row.labels is not None and row.labels != record

    def window(self, version: str, since: float, until: float, limit: int) -> list[Recorded]:
        """Predictions of a version from `since` to before `until`, seconds since 1970, the newest first."""
        table = db.predictions
        query = sa.select(table).where(
            table.c.version == version, table.c.create_time >= since, table.c.create_time < until
        )
        return self._read(query.order_by(table.c.create_time.desc(), table.c.id, table.c.index).limit(limit))

    def each(
        self, version: str, since: float, until: float, limit: int, *, with_labels: bool = False
    ) -> Iterator[Recorded]:
        """The same one after the other, few in memory at a time; or only those `with_labels`."""
        table = db.predictions
        query = sa.select(table.c.id, table.c.index).where(
            table.c.version == version, table.c.create_time >= since, table.c.create_time < until
        )
        if with_labels:
            query = query.where(table.c.labels.is_not(None))
        with self._database.read() as connection:
            keys = connection.execute(
                query.order_by(table.c.create_time.desc(), table.c.id, table.c.index).limit(limit)
            ).all()
        for first in range(0, len(keys), _PAGE):
            page = sa.tuple_(table.c.id, table.c.index).in_([tuple(key) for key in keys[first : first + _PAGE]])
            yield from self._read(
                sa.select(table)
                .where(table.c.version == version, page)
                .order_by(table.c.create_time.desc(), table.c.id, table.c.index)
            )

    def labelled(self, rollout: str, version: str, limit: int) -> list[Recorded]:
        """Predictions of a version in a rollout that have feedback: the newest, newest first."""
        table = db.predictions
        query = sa.select(table).where(
            table.c.rollout == rollout, table.c.version == version, table.c.labels.is_not(None)
        )
        return self._read(query.order_by(table.c.create_time.desc(), table.c.id, table.c.index).limit(limit))

    def num_labels(self, rollout: str) -> dict[str, tuple[int, int]]:
        """By version of a rollout: its predictions with feedback, and the callers that these are of. One without a key
        counts as a caller of its own."""
        table = db.predictions
        keyless = sa.func.sum(sa.case((table.c.caller == "", 1), else_=0))
        callers = sa.func.count(sa.distinct(sa.func.nullif(table.c.caller, "")))
        query = (
            sa.select(table.c.version, sa.func.count(), keyless + callers)
            .where(table.c.rollout == rollout, table.c.labels.is_not(None))
            .group_by(table.c.version)
        )
        with self._database.read() as connection:
            return {row[0]: (row[1], int(row[2])) for row in connection.execute(query)}

    def calls(self, rollout: str) -> dict[str, tuple[int, int, float]]:
        """By version of a rollout: calls, those that failed, and the seconds that all took together."""
        table = db.rollout_calls
        with self._database.read() as connection:
            rows = connection.execute(sa.select(table).where(table.c.rollout == rollout)).all()
        return {row.version: (row.calls, row.errors, row.seconds) for row in rows}

    def forget(self, before: float, most: int) -> int:
        """Deletes predictions made before a time, and the oldest that are more than `most`; 0: as many as there are.

        Returns how many.
        """
        table = db.predictions
        with self._database.read() as connection:
            newest = sa.select(table.c.create_time).order_by(table.c.create_time.desc()).offset(most).limit(1)
            beyond = connection.execute(newest).scalar() if most else None
        query = table.delete().where(table.c.create_time < before)
        if beyond is not None:
            query = table.delete().where((table.c.create_time < before) | (table.c.create_time <= beyond))
        with self._database.write() as connection:
            return connection.execute(query).rowcount

    def _rows(self, id: str, index: int) -> list[Recorded]:
        table = db.predictions
        # The answer has been written first.
        query = sa.select(table).where(table.c.id == id, table.c.index == index).order_by(table.c.create_time)
        return self._read(query)

    def _read(self, query: sa.Select[Any]) -> list[Recorded]:
        with self._database.read() as connection:
            return [_recorded(row) for row in connection.execute(query)]

    # The thread that writes.

    def _run(self) -> None:
        while not self._woken.wait(FLUSH_S):
            self._attempt(self.flush)
        self._attempt(self.flush)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except sa.exc.OperationalError as error:
            log.warning("predictions wait for the database", error=type(error.orig).__name__, count=len(self._waiting))
        if self.dropped and (now := time.monotonic()) - self._warned > _WARNED_S:
            log.warning("predictions not kept", count=self.dropped, why="too many waited to be written")
            self._warned = now

    def _write(self) -> bool:
        """Writes a batch; returns whether there was one. What cannot be written waits on."""
        with self._lock:
            batch = [self._waiting[i] for i in range(min(_BATCH, len(self._waiting)))]
            calls, errors, seconds = self._calls, self._errors, self._seconds
            self._calls, self._errors, self._seconds = Counter(), Counter(), {}
        if not batch and not calls:
            return False
        now = db.now()
        rows = [row for place, entry in enumerate(batch) for row in _rows_of(entry, now + place * 1e-6)]
        try:
            with self._database.write() as connection:
                if rows:
                    connection.execute(db.predictions.insert(), rows)
                for side, count in sorted(calls.items()):
                    _add(connection, *side, count, errors[side], seconds[side])
        except sa.exc.OperationalError:
            with self._lock:
                self._calls.update(calls)
                self._errors.update(errors)
                for side, more in seconds.items():
                    self._seconds[side] = self._seconds.get(side, 0.0) + more
            raise
        except sa.exc.SQLAlchemyError as error:
            # What the database refuses it would refuse for ever, and all that comes after with it.
            self.dropped += len(rows)
            log.error("predictions refused by the database", count=len(rows), exc_info=error)
        with self._lock:
            for entry in batch:
                self._waiting.popleft()
                self._waiting_bytes -= sum(instance.ByteSize() for instance in entry.instances)
        return True


def _rows_of(entry: Entry, time: float) -> list[dict[str, Any]]:
    return [
        {
            "id": entry.id,
            "index": index,
            "version": entry.version,
            "alias": entry.alias,
            "rollout": entry.rollout,
            "caller": entry.caller,
            "create_time": time,
            "instance": _packed(entry.instances[index]) if entry.instances else None,
            "prediction": _packed(prediction),
        }
        for index, prediction in enumerate(entry.predictions)
    ]


def _packed(message: Message) -> bytes:
    packed = AnyMessage()
    packed.Pack(message)
    return packed.SerializeToString()


def _recorded(row: sa.Row[Any]) -> Recorded:
    return Recorded(
        id=row.id,
        index=row._mapping["index"],  # A row is a tuple, whose `index` is a method.
        version=row.version,
        alias=row.alias,
        create_time=row.create_time,
        instance=AnyMessage.FromString(row.instance) if row.instance is not None else None,
        prediction=AnyMessage.FromString(row.prediction),
        labels=tuple(RecordFeedbackRequest.FromString(row.labels).labels) if row.labels is not None else (),
        value=row.value,
        caller=row.caller,
    )


def _add(connection: sa.Connection, rollout: str, version: str, calls: int, errors: int, seconds: float) -> None:
    """Adds to a side's counts; a rollout that was deleted meanwhile has none."""
    table = db.rollout_calls
    if connection.execute(sa.select(db.rollouts.c.id).where(db.rollouts.c.id == rollout)).first() is None:
        return
    zero = {"rollout": rollout, "version": version, "calls": 0, "errors": 0, "seconds": 0.0}
    db.insert_or_skip(connection, table, zero)
    connection.execute(
        table.update()
        .where(table.c.rollout == rollout, table.c.version == version)
        .values(calls=table.c.calls + calls, errors=table.c.errors + errors, seconds=table.c.seconds + seconds)
    )
