"""How a version does since it answers: its live predictions against its profile, its scores by what turned out true.

What the server finds by itself is kept window by window; servers that share a database look at each window once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import sqlalchemy as sa
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from luthier import bundle, drift, feedback, names
from luthier import database as db
from luthier.comparison import estimate
from luthier.database import Database, insert_or_skip
from luthier.errors import DataLoss, Unavailable
from luthier.journal import Journal, Recorded
from luthier.operations import timestamp
from luthier.plugins import Plugins
from luthier.registry import Registry
from luthier.store import Store
from luthier.task import Task
from luthier.v1.model_pb2 import ModelVersion
from luthier.v1.monitoring_pb2 import Drift

if TYPE_CHECKING:
    import pyarrow as pa

MOST_LOOKED_AT = 1000
"""Predictions of a window that are looked at, the newest; more would hardly tell more."""
MOST_LABELS = 5000
"""Predictions with labels that are scored, the newest."""
LEAST_LABELS = 30
"""Fewer labels tell too little of a score."""


class Monitoring:
    """Looks at windows of live predictions. Thread-safe."""

    def __init__(
        self, database: Database, registry: Registry, store: Store, plugins: Plugins, journal: Journal
    ) -> None:
        self._database = database
        self._registry = registry
        self._store = store
        self._plugins = plugins
        self._journal = journal

    def look(
        self, model: str, number: int, since: float, until: float, pause: Callable[[], object] = lambda: None
    ) -> Drift:
        """What a version predicted from `since` to before `until`, seconds since 1970, against its profile.

        `pause` is called now and then, to leave the processor to others. Raises NotFound, and FailedPrecondition where
        the version has no profile.
        """
        version = self._registry.model_version(model, number)
        task = self._plugins.task(version.task)
        profile = self._profile(version)
        facts = []
        for count, one in enumerate(self._journal.each(version.name, since, until, MOST_LOOKED_AT)):
            if not count % 16:
                pause()
            if found := facts_of(task, one):
                facts.append(found)
        result = drift.compare(profile, facts)
        result.model_version = version.name
        result.start_time.CopyFrom(timestamp(since))
        result.end_time.CopyFrom(timestamp(until))
        self._score(task, version, since, until, result)
        return result

    def settle(self) -> None:
        """Has what this process predicted so far written."""
        self._journal.flush()

    def has_any(self, model: str, number: int, since: float, until: float) -> bool:
        """Whether a version made a recorded prediction in a window."""
        return bool(self._journal.window(names.model_version(model, number), since, until, 1))

    # What the server found by itself.

    def live(self) -> list[tuple[str, int]]:
        """The versions that an alias names."""
        query = sa.select(db.aliases.c.model, db.aliases.c.number).distinct()
        with self._database.read() as connection:
            return sorted((row.model, row.number) for row in connection.execute(query))

    def claim(self, model: str, number: int, end: float) -> bool:
        """Whether it is the caller who is to look at the window that ends then; for everyone else it is not."""
        row = {"model": model, "number": number, "end_time": end, "verdict": Drift.VERDICT_UNSPECIFIED, "record": b""}
        with self._database.write() as connection:
            return insert_or_skip(connection, db.drift_windows, row)

    def keep(self, model: str, number: int, end: float, found: Drift) -> None:
        """Keeps what was found in a window that was claimed."""
        table = db.drift_windows
        where = (table.c.model == model) & (table.c.number == number) & (table.c.end_time == end)
        values = {"verdict": found.verdict, "record": found.SerializeToString()}
        with self._database.write() as connection:
            connection.execute(table.update().where(where).values(values))

    def windows(self, model: str, number: int, before: float | None, limit: int) -> list[tuple[float, Drift]]:
        """Windows that were looked at, with their ends, newest first, from before a time on."""
        table = db.drift_windows
        query = sa.select(table).where(
            table.c.model == model, table.c.number == number, table.c.verdict != Drift.VERDICT_UNSPECIFIED
        )
        if before is not None:
            query = query.where(table.c.end_time < before)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(table.c.end_time.desc()).limit(limit)).all()
        return [(row.end_time, Drift.FromString(row.record)) for row in rows]

    def newest(self) -> list[tuple[str, int, Drift]]:
        """The newest window of each version that an alias names; raises Unavailable without a database."""
        try:
            found = [(model, number, self.windows(model, number, None, 1)) for model, number in self.live()]
        except sa.exc.OperationalError as error:
            raise Unavailable("the database does not answer") from error
        return [(model, number, windows[0][1]) for model, number, windows in found if windows]

    def forget(self, before: float) -> None:
        """Deletes what was found in windows that ended before a time."""
        with self._database.write() as connection:
            connection.execute(db.drift_windows.delete().where(db.drift_windows.c.end_time < before))

    def _profile(self, version: ModelVersion) -> dict[str, object]:
        """The profile of a version, as it was published; raises DataLoss where its bytes were changed."""
        directory = self._store.bring(self._store.bundle(version.digest))
        profile = drift.load(directory, version.name)
        expected = {file.path: file.sha256 for file in version.files}
        if bundle.sha256_of(directory / drift.PROFILE_FILE) != expected.get(drift.PROFILE_FILE):
            raise DataLoss("the profile of the bundle was changed", file=drift.PROFILE_FILE)
        return profile

    def _score(self, task: Task, version: ModelVersion, since: float, until: float, into: Drift) -> None:
        """Fills calibration and live score by the labels that came back for predictions of a window."""
        kind = task.methods[0].prediction.DESCRIPTOR.full_name
        # Scores need no inputs, and inputs may be large.
        recorded = [
            replace(one, instance=None)
            for one in self._journal.each(version.name, since, until, MOST_LABELS, with_labels=True)
            if one.value is not None and one.prediction.TypeName() == kind
        ]
        if len(recorded) < LEAST_LABELS:
            return
        metric = task.primary_metric
        found = estimate(feedback.labelled(task, recorded))
        live = into.live
        live.num_labels, live.metric, live.metrics[metric] = len(recorded), metric, found.value
        live.value, live.low, live.high, live.published = found.value, found.lower, found.upper, version.metrics[metric]
        live.worse = found.lower > live.published if task.lower_is_better else found.upper < live.published
        examples, predictions = _truths(task, recorded)
        if len(task.rows(examples)) == len(predictions):
            live.metrics.update(task.score(examples, predictions).metrics)
            if calibration := drift.calibration_of(task.confidences(examples, predictions)):
                into.calibration.CopyFrom(calibration)


def facts_of(task: Task, one: Recorded) -> drift.Facts:
    """The facts of a recorded prediction; none where an older plugin recorded it in a form that is no longer known."""
    prediction = unpacked(one.prediction, [method.prediction for method in task.methods])
    instance = unpacked(one.instance, [method.instance for method in task.methods]) if one.instance else None
    if prediction is None or (one.instance and instance is None):
        return {}
    return task.features(instance, prediction)


def unpacked(packed: AnyMessage, kinds: Iterable[type[Message]]) -> Message | None:
    """The message in an Any, of whichever of these kinds it is; None where it is of none."""
    for kind in kinds:
        if packed.type_url.rpartition("/")[2] == kind.DESCRIPTOR.full_name:
            try:
                return kind.FromString(packed.value)
            except DecodeError:
                return None
    return None


def _truths(task: Task, recorded: Sequence[Recorded]) -> tuple[pa.Table, list[Message]]:
    """The examples that the labels of predictions stand for, and the predictions."""
    import pyarrow as pa

    predictions = [task.methods[0].prediction.FromString(one.prediction.value) for one in recorded]
    truths = [
        task.truth([task.example.FromString(label.value) for label in one.labels], prediction, None)
        for one, prediction in zip(recorded, predictions, strict=True)
    ]
    return pa.concat_tables(truths), predictions
