"""Rollouts in the database: a candidate beside an alias's own version, and what became of it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sqlalchemy as sa

from luthier import database as db
from luthier import names
from luthier.database import Database, bump, insert_or_skip, now
from luthier.errors import AlreadyExists, FailedPrecondition, InvalidArgument, LuthierError, NotFound
from luthier.operations import timestamp
from luthier.v1 import rollout_pb2 as pb
from luthier.v1.model_pb2 import Recording

Row: TypeAlias = sa.Row[Any]
Key: TypeAlias = tuple[str, int]
"""A model and the number of a version."""
Kind: TypeAlias = pb.RolloutEvent.Kind.ValueType
State: TypeAlias = pb.Rollout.State.ValueType

OPEN = (pb.Rollout.STATE_RUNNING, pb.Rollout.STATE_PAUSED)
FIRST_LOOK = 50
"""Callers with labels on each side below which the error of a mean is too uncertain to decide by."""
MOST_SHADOWS = 4


@dataclass(frozen=True)
class Split:
    """How a rollout divides an alias's calls at present."""

    rollout: str
    candidate: Key | None
    share: float
    """Of the calls, from 0 to 1, that the candidate answers."""
    shadows: tuple[Key, ...]
    broken: LuthierError | None = None
    """Why the candidate cannot be loaded here."""


@dataclass(frozen=True)
class Policy:
    """What is special about the calls of an alias."""

    alias: str
    """`models/{model}/aliases/{alias}`."""
    recording: Recording
    split: Split | None


class Rollouts:
    """Reads and writes of rollouts. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def policies(self) -> dict[tuple[str, str], Policy]:
        """By model and alias, those aliases whose calls are divided or kept."""
        found = {}
        with self._database.read() as connection:
            kept = sa.select(db.aliases).where(db.aliases.c.recording.is_not(None))
            for row in connection.execute(kept):
                recording = Recording.FromString(row.recording)
                if recording.mode > Recording.MODE_OFF:
                    found[row.model, row.alias] = Policy(_alias(row.model, row.alias), recording, None)
            for row in connection.execute(sa.select(db.rollouts).where(db.rollouts.c.holds.is_not(None))):
                rollout = pb.Rollout.FromString(row.record)
                running = row.state == pb.Rollout.STATE_RUNNING
                split = Split(
                    row.id,
                    _key(rollout.candidate) if rollout.candidate else None,
                    rollout.percent / 100 if running else 0.0,
                    tuple(map(_key, rollout.shadows)) if running else (),
                )
                found[row.model, row.alias] = Policy(rollout.alias, rollout.recording, split)
        return found

    def start(self, asked: pb.StartRolloutRequest) -> pb.Rollout:
        """Starts a rollout, or returns the one under way that was asked for alike.

        Raises InvalidArgument, NotFound, and AlreadyExists where another is under way.
        """
        rollout = _checked(asked)
        model, alias = names.parse("models/{model}/aliases/{alias}", rollout.alias)
        id, time = uuid.uuid4().hex, now()
        rollout.name, rollout.state = f"rollouts/{id}", pb.Rollout.STATE_RUNNING
        rollout.create_time.CopyFrom(timestamp(time))
        rollout.update_time.CopyFrom(rollout.create_time)
        with self._database.write() as connection:
            # Locked, so that none is deleted meanwhile.
            for version in filter(None, (rollout.candidate, *rollout.shadows)):
                key = _key(version)
                table = db.model_versions
                query = sa.select(table.c.number).where(table.c.model == key[0], table.c.number == key[1])
                if connection.execute(query.with_for_update(read=True)).first() is None:
                    raise NotFound(version)
            row = {
                "id": id,
                "model": model,
                "alias": alias,
                "holds": f"{model}@{alias}",
                "state": rollout.state,
                "looks": 0,
                "next_look": rollout.rule.first_look,
                "last_sequence": 0,
                "create_time": time,
                "record": b"",
            }
            pointer = sa.select(db.aliases).where(db.aliases.c.model == model, db.aliases.c.alias == alias)
            if connection.execute(pointer).first() is None:
                raise NotFound(rollout.alias)
            if not insert_or_skip(connection, db.rollouts, row):
                other = db.rollouts.c.holds == row["holds"]
                held = connection.execute(sa.select(db.rollouts.c.record).where(other)).scalar_one()
                return _same(pb.Rollout.FromString(held), rollout)
            # Read again: an alias that was moved meanwhile has been, now that this one holds it.
            found = connection.execute(pointer.with_for_update()).one()
            rollout.stable = names.model_version(model, found.number)
            if rollout.stable in (rollout.candidate, *rollout.shadows):
                raise InvalidArgument({"candidate": f"{rollout.alias} names {rollout.stable} already"})
            _settle_recording(rollout, asked, Recording.FromString(found.recording or b""))
            _store(connection, rollout)
            what = f"{rollout.candidate} answers {rollout.percent:g} % of the calls" if rollout.candidate else "shadows"
            _append(connection, rollout, pb.RolloutEvent(kind=pb.RolloutEvent.KIND_STARTED, message=what))
            bump(connection, "models")
            bump(connection, "operations")
        return rollout

    def get(self, id: str) -> pb.Rollout:
        """A rollout without figures, but for its looks; raises NotFound."""
        with self._database.read() as connection:
            return _rollout(_row(connection, id))

    def page(self, model: str, after: tuple[float, str] | None, size: int) -> list[tuple[float, str, pb.Rollout]]:
        """Rollouts with their times and ids, newest first, behind the given time and id; of a model, or empty: all."""
        table = db.rollouts
        query = sa.select(table).order_by(table.c.create_time.desc(), table.c.id).limit(size)
        if model:
            query = query.where(table.c.model == model)
        if after:
            time, id = after
            query = query.where((table.c.create_time < time) | ((table.c.create_time == time) & (table.c.id > id)))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [(row.create_time, row.id, pb.Rollout.FromString(row.record)) for row in rows]

    def update(self, id: str, percent: float | None, paused: bool | None) -> pb.Rollout:
        """Changes the share, pauses or goes on. Raises InvalidArgument, NotFound, FailedPrecondition."""
        with self._database.write() as connection:
            row, rollout = _locked(connection, id)
            if row.holds is None:
                raise FailedPrecondition(f"rollouts/{id} has ended")
            said = []
            if percent is not None and percent != rollout.percent:
                if not rollout.candidate:
                    raise InvalidArgument({"percent": "the rollout has shadows alone"})
                rollout.percent = _percent(percent)
                said.append(f"{rollout.candidate} answers {rollout.percent:g} % of the calls")
            state = rollout.state if paused is None else OPEN[paused]
            if state != rollout.state:
                rollout.state = state
                said.append("paused" if paused else "goes on")
            if said:
                event = pb.RolloutEvent(kind=pb.RolloutEvent.KIND_CHANGED, message=", ".join(said))
                _changed(connection, rollout, event)
        return rollout

    def promote(
        self, id: str, why: str, comparison: pb.RolloutComparison | None = None, look: int | None = None
    ) -> pb.Rollout:
        """Points the alias at the candidate and ends the rollout; once, whoever else tries.

        `look` is the number of the look at labels that decided it, of which each is taken once.
        Raises FailedPrecondition where it has ended otherwise.
        """
        with self._database.write() as connection:
            row, rollout = _locked(connection, id)
            if not _may_end(row, rollout, pb.Rollout.STATE_PROMOTED, look):
                return rollout
            if not rollout.candidate:
                raise FailedPrecondition(f"rollouts/{id} has no candidate")
            model, number = _key(rollout.candidate)
            where = (db.aliases.c.model == model, db.aliases.c.alias == row.alias)
            connection.execute(db.aliases.update().where(*where).values(number=number))
            _end(connection, row, rollout, pb.Rollout.STATE_PROMOTED, why, comparison, look)
        return rollout

    def roll_back(
        self, id: str, why: str, comparison: pb.RolloutComparison | None = None, look: int | None = None
    ) -> pb.Rollout:
        """Ends the rollout with the alias where it is, otherwise as `promote`."""
        with self._database.write() as connection:
            row, rollout = _locked(connection, id)
            if _may_end(row, rollout, pb.Rollout.STATE_ROLLED_BACK, look):
                _end(connection, row, rollout, pb.Rollout.STATE_ROLLED_BACK, why, comparison, look)
        return rollout

    def undecided(self, id: str, why: str, comparison: pb.RolloutComparison, look: int) -> pb.Rollout:
        """Records a look that decided nothing, unless another has taken it; the next needs `comparison.next_look`."""
        with self._database.write() as connection:
            row, rollout = _locked(connection, id)
            if row.holds is not None and row.looks == look - 1:
                _look(connection, row, look, comparison.next_look)
                kind = pb.RolloutEvent.KIND_UNDECIDED
                _append(connection, rollout, pb.RolloutEvent(kind=kind, message=why, comparison=comparison))
                bump(connection, "operations")
        return rollout

    def looks(self, id: str) -> tuple[int, int]:
        """How many looks at the labels were taken, and how many callers each side needs for the next; NotFound."""
        with self._database.read() as connection:
            row = _row(connection, id)
            return row.looks, row.next_look

    def events(self, id: str, after: int) -> list[pb.RolloutEvent]:
        """The events behind a sequence number, in order; raises NotFound."""
        table = db.rollout_events
        query = sa.select(table.c.record).where(table.c.rollout == id, table.c.sequence > after)
        with self._database.read() as connection:
            _row(connection, id)
            records = connection.execute(query.order_by(table.c.sequence)).scalars().all()
        return [pb.RolloutEvent.FromString(record) for record in records]


def end_with_alias(connection: sa.Connection, model: str, alias: str, why: str, target: int = 0) -> None:
    """Ends the rollout of an alias that is about to be removed, or pointed at the version `target` by hand."""
    query = sa.select(db.rollouts).where(db.rollouts.c.holds == f"{model}@{alias}").with_for_update()
    row = connection.execute(query).first()
    if row is None:
        return
    rollout = pb.Rollout.FromString(row.record)
    if names.model_version(model, target) != rollout.stable:
        _end(connection, row, rollout, pb.Rollout.STATE_ENDED, why, None, None)


def in_use(connection: sa.Connection, model: str, number: int) -> bool:
    """Whether a rollout under way needs a version."""
    query = sa.select(db.rollouts.c.record).where(db.rollouts.c.model == model, db.rollouts.c.holds.is_not(None))
    version = names.model_version(model, number)
    rollouts = map(pb.Rollout.FromString, connection.execute(query).scalars())
    return any(version in (one.stable, one.candidate, *one.shadows) for one in rollouts)


def check_recording(recording: Recording, field: str = "recording") -> None:
    """Raises InvalidArgument for a share that is none."""
    if recording.HasField("sample") and not 0 < recording.sample <= 1:
        raise InvalidArgument({f"{field}.sample": f"{recording.sample:g} is not above 0 and up to 1"})


def _checked(asked: pb.StartRolloutRequest) -> pb.Rollout:
    """What is to be started, with every default filled in; raises InvalidArgument for all that is wrong."""
    model, _ = names.parse("models/{model}/aliases/{alias}", asked.alias, "alias")
    check_recording(asked.recording)
    wrong = {}
    versions = {f"shadows[{i}]": shadow for i, shadow in enumerate(asked.shadows)}
    if asked.candidate:
        versions["candidate"] = asked.candidate
    for field, version in versions.items():
        if names.parse("models/{model}/versions/{number}", version, field)[0] != model:
            wrong[field] = f"it is no version of models/{model}"
    if not versions:
        wrong["candidate"] = "there is neither a candidate nor a shadow"
    if len({*versions.values()}) < len(versions) or len(asked.shadows) > MOST_SHADOWS:
        wrong["shadows"] = f"at most {MOST_SHADOWS}, each another version"
    rule = pb.RolloutRule()
    rule.CopyFrom(asked.rule)
    defaults = {"automatic": True, "error_probability": 0.05, "tolerance": 0.0, "max_error_rate": 0.01}
    for name, value in {**defaults, "first_look": FIRST_LOOK}.items():
        if not rule.HasField(name):  # type: ignore[arg-type]
            setattr(rule, name, value)
    if not 0 < rule.error_probability <= 0.5:
        wrong["rule.error_probability"] = f"{rule.error_probability:g} is not above 0 and up to 0.5"
    if not 0 <= rule.tolerance < math.inf:
        wrong["rule.tolerance"] = f"{rule.tolerance:g} is below 0"
    if rule.first_look < FIRST_LOOK:
        wrong["rule.first_look"] = f"{rule.first_look} is below {FIRST_LOOK}"
    if not 0 <= rule.max_error_rate <= 1:
        wrong["rule.max_error_rate"] = f"{rule.max_error_rate:g} is not between 0 and 1"
    if rule.automatic and asked.recording.mode == Recording.MODE_OFF:
        wrong["recording.mode"] = "without predictions there is no feedback; set rule.automatic to false"
    if not asked.candidate and asked.percent:
        wrong["percent"] = "there is no candidate"
    if wrong:
        raise InvalidArgument(wrong)
    return pb.Rollout(
        alias=asked.alias,
        candidate=asked.candidate,
        percent=_percent(asked.percent),
        shadows=asked.shadows,
        rule=rule,
        recording=asked.recording,
    )


def _percent(percent: float) -> float:
    if not 0 <= percent <= 100:
        raise InvalidArgument({"percent": f"{percent:g} is not between 0 and 100"})
    return percent


def _settle_recording(rollout: pb.Rollout, asked: pb.StartRolloutRequest, of_alias: Recording) -> None:
    if not asked.recording.mode:
        mode = of_alias.mode if of_alias.mode > Recording.MODE_OFF else Recording.MODE_PREDICTIONS
        sample = asked.recording if asked.recording.HasField("sample") else of_alias
        rollout.recording.CopyFrom(Recording(mode=mode, sample=sample.sample if sample.HasField("sample") else None))


def _same(held: pb.Rollout, wanted: pb.Rollout) -> pb.Rollout:
    """The rollout under way where it is what is wanted; raises AlreadyExists."""
    for field in ("candidate", "percent", "shadows", "rule"):
        if getattr(held, field) != getattr(wanted, field):
            raise AlreadyExists(
                f"{held.alias} has a rollout under way, {held.name}, with another {field}; stop it first"
            )
    return held


def _row(connection: sa.Connection, id: str, *, lock: bool = False) -> Row:
    query = sa.select(db.rollouts).where(db.rollouts.c.id == id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"rollouts/{id}")
    return row


def _locked(connection: sa.Connection, id: str) -> tuple[Row, pb.Rollout]:
    row = _row(connection, id, lock=True)
    return row, _rollout(row)


def _rollout(row: Row) -> pb.Rollout:
    return pb.Rollout.FromString(row.record)


def _may_end(row: Row, rollout: pb.Rollout, state: State, look: int | None) -> bool:
    """False where another has done it, or has taken the look; raises FailedPrecondition where it ended otherwise."""
    if row.holds is None:
        if row.state == state or look is not None:
            return False
        raise FailedPrecondition(f"{rollout.name} has ended: {rollout.reason}")
    return look is None or row.looks == look - 1


def _end(
    connection: sa.Connection,
    row: Row,
    rollout: pb.Rollout,
    state: State,
    why: str,
    comparison: pb.RolloutComparison | None,
    look: int | None,
) -> None:
    if look is not None and comparison is not None:
        _look(connection, row, look, comparison.next_look)
    rollout.state, rollout.reason = state, why
    kinds: dict[int, Kind] = {
        pb.Rollout.STATE_PROMOTED: pb.RolloutEvent.KIND_PROMOTED,
        pb.Rollout.STATE_ROLLED_BACK: pb.RolloutEvent.KIND_ROLLED_BACK,
        pb.Rollout.STATE_ENDED: pb.RolloutEvent.KIND_ENDED,
    }
    _changed(connection, rollout, pb.RolloutEvent(kind=kinds[state], message=why, comparison=comparison))


def _look(connection: sa.Connection, row: Row, look: int, next_look: int) -> None:
    where = db.rollouts.c.id == row.id
    connection.execute(db.rollouts.update().where(where).values(looks=look, next_look=next_look))


def _changed(connection: sa.Connection, rollout: pb.Rollout, event: pb.RolloutEvent) -> None:
    _store(connection, rollout)
    _append(connection, rollout, event)
    bump(connection, "models")
    bump(connection, "operations")


def _store(connection: sa.Connection, rollout: pb.Rollout) -> None:
    rollout.update_time.CopyFrom(timestamp(now()))
    values: dict[str, Any] = {"state": rollout.state, "record": rollout.SerializeToString()}
    if rollout.state not in OPEN:
        values["holds"] = None
    connection.execute(db.rollouts.update().where(db.rollouts.c.id == _id(rollout)).values(**values))


def _append(connection: sa.Connection, rollout: pb.Rollout, event: pb.RolloutEvent) -> None:
    table, id = db.rollouts, _id(rollout)
    event.sequence = connection.execute(sa.select(table.c.last_sequence).where(table.c.id == id)).scalar_one() + 1
    event.time.CopyFrom(timestamp(now()))
    row = {"rollout": id, "sequence": event.sequence, "record": event.SerializeToString()}
    connection.execute(db.rollout_events.insert().values(row))
    connection.execute(table.update().where(table.c.id == id).values(last_sequence=event.sequence))


def _id(rollout: pb.Rollout) -> str:
    return rollout.name.rpartition("/")[2]


def _alias(model: str, alias: str) -> str:
    return f"models/{model}/aliases/{alias}"


def _key(version: str) -> Key:
    model, number = names.parse("models/{model}/versions/{number}", version)
    return model, int(number)


def versions_of(rollout: pb.Rollout) -> Sequence[tuple[str, pb.RolloutSide.Role.ValueType]]:
    """The versions of a rollout with what each does."""
    found = [(rollout.stable, pb.RolloutSide.ROLE_STABLE)]
    if rollout.candidate:
        found.append((rollout.candidate, pb.RolloutSide.ROLE_CANDIDATE))
    return [*found, *((shadow, pb.RolloutSide.ROLE_SHADOW) for shadow in rollout.shadows)]
