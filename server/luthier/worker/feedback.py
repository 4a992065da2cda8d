"""FineTuneFromFeedback: live predictions with labels become a version of a data set, and the model is tuned on it.

The data set's version is published by a transaction of its own, as that of a CreateDataset. An attempt that follows one
which was killed behind it finds it by the operation's name, and goes on with the training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from luthier import datasets, fields, names
from luthier.errors import FailedPrecondition, NotFound
from luthier.journal import Journal, Recorded
from luthier.monitoring import unpacked
from luthier.tabular import FRACTIONS
from luthier.task import PARTS, Split, Task
from luthier.v1 import dataset_pb2, model_pb2
from luthier.worker import fine_tune
from luthier.worker.job import Job, Publish

if TYPE_CHECKING:
    import pyarrow as pa

MOST = 200_000
"""Predictions with labels that become examples, the newest."""
_LOOKED = 50
"""Versions of the data set among which one of an earlier attempt is looked for."""


def work(job: Job) -> Publish:
    """Makes the data set's version, or finds that of an earlier attempt, and tunes."""
    request: model_pb2.FineTuneFromFeedbackRequest = job.request(model_pb2.FineTuneFromFeedbackRequest)
    registry = job.tools.registry
    model, number = registry.resolve(request.model, "model")
    version = registry.model_version(model, number)
    task = job.tools.plugins.task(version.task)
    dataset = _made(job, request.dataset_id) or _make(job, version, request)
    job.emit({"message": f"tuning {version.name} on {dataset.name}, of {dataset.feedback.num_predictions} predictions"})
    tuning = model_pb2.FineTuneRequest(
        model_id=model,
        task=version.task,
        dataset=dataset.name,
        base=version.name if task.goes_on else _catalogued(version.base),
        config=request.config,
        seed=request.seed,
    )
    if request.HasField("parity_tolerance"):
        tuning.parity_tolerance = request.parity_tolerance
    if request.HasField("quantization"):
        tuning.quantization.CopyFrom(request.quantization)
    return fine_tune.tune(job, tuning)


def _catalogued(base: str) -> str:
    """A base of the catalogue; empty for one of another kind, which may be gone, and for none."""
    return base if base.startswith("bases/") else ""


def _made(job: Job, dataset: str) -> dataset_pb2.DatasetVersion | None:
    """The version that an earlier attempt at this operation published."""
    found = job.tools.registry.dataset_versions(dataset, None, _LOOKED)
    return next((one for one in found if one.feedback.operation == f"operations/{job.claim.operation}"), None)


def _make(
    job: Job, version: model_pb2.ModelVersion, request: model_pb2.FineTuneFromFeedbackRequest
) -> dataset_pb2.DatasetVersion:
    """Collects, divides, validates and publishes."""
    tools = job.tools
    task = tools.plugins.task(version.task)
    try:
        own = tools.registry.dataset_version(names.parse_versioned("datasets", version.dataset_version, "dataset"))
    except NotFound as error:
        raise FailedPrecondition(
            f"{version.dataset_version}, which {version.name} was tuned on, was deleted, and with it how examples are "
            "stored; make a data set and start a FineTune"
        ) from error
    stored = datasets.load(tools.store.bring(tools.store.dataset(own.digest)))
    used, examples = _collect(job, task, version, request, stored["train"].schema)
    split = _split_of(own.split)
    extras = {name: table for name, table in stored.items() if name not in PARTS}
    joined = {} if request.feedback_only else {name: stored[name] for name in PARTS}
    parts = _divide(task, examples, split, joined, is_given=_is_given(own.split))
    recorded = Split(method="given") if joined and _is_given(own.split) else split
    built = datasets.build_of(task, {**parts, **extras}, recorded, job.directory / "dataset", job.progress)
    job.check()
    tools.store.publish(job.directory / "dataset", tools.store.dataset(built.digest))
    made = dataset_pb2.DatasetVersion(
        task=task.id,
        digest=built.digest,
        num_examples=built.num_examples,
        size_bytes=built.size_bytes,
        split=built.split,
        statistics=ParseDict(built.statistics, Struct()),
        warnings=built.warnings,
        feedback=dataset_pb2.FeedbackSource(
            model_version=version.name,
            since=request.since,
            until=request.until,
            num_predictions=len(used),
            predictions_sha256=hashlib.sha256("".join(f"{one}\n" for one in sorted(used)).encode()).hexdigest(),
            joined="" if request.feedback_only else own.name,
            operation=f"operations/{job.claim.operation}",
        ),
    )
    with tools.database.write() as connection:
        tools.operations.check(connection, job.claim)
        return tools.registry.add_dataset_version(connection, request.dataset_id, made)


def _collect(
    job: Job,
    task: Task,
    version: model_pb2.ModelVersion,
    request: model_pb2.FineTuneFromFeedbackRequest,
    schema: pa.Schema,
) -> tuple[list[str], pa.Table]:
    """The predictions that can be learnt from, as `{id}/{index}`, and their examples in the columns of the model's own.

    Raises FailedPrecondition where there is none.
    """
    import pyarrow as pa

    journal = Journal(job.tools.database)
    since, until = (stamp.ToMicroseconds() / 1e6 for stamp in (request.since, request.until))
    used: list[str] = []
    tables = [schema.empty_table()]
    seen = 0
    for one in journal.each(version.name, since, until, MOST, with_labels=True):
        if not seen % 100:
            job.progress("collecting feedback", seen, 0)
        seen += 1
        if (rows := _examples(task, one)) is not None:
            used.append(f"{one.id}/{one.index}")
            tables.append(pa.Table.from_pylist(rows, schema))
    if not used:
        why = (
            "their inputs were not kept: record them by the alias's recording, MODE_INPUTS" if seen else "none has any"
        )
        raise FailedPrecondition(
            f"of the predictions of {version.name} in this time {seen} have labels to learn from; {why}"
        )
    return used, pa.concat_tables(tables)


def _examples(task: Task, one: Recorded) -> list[dict[str, Any]] | None:
    """The examples that a prediction and its labels make; None where something that an example needs is missing."""
    instance = unpacked(one.instance, [task.methods[0].instance]) if one.instance else None
    prediction = unpacked(one.prediction, [task.methods[0].prediction])
    labels = [unpacked(label, [task.example]) for label in one.labels]
    known = [label for label in labels if label is not None]
    if instance is None or prediction is None or not known or len(known) < len(labels):
        return None
    rows: list[dict[str, Any]] = task.truth(known, prediction, instance).to_pylist()
    # As in files, what a label leaves out takes its default.
    defaults = {f.name: fields.help_of(f).default for f in fields.of(task.example) if fields.help_of(f).default}
    for row in rows:
        row.update({name: type(row[name])(text) for name, text in defaults.items() if not row[name]})
    inputs = {field.name for field in instance.DESCRIPTOR.fields}
    needed = [f.name for f in fields.of(task.example) if fields.help_of(f).required and f.name in inputs]
    return rows if all(row[name] for row in rows for name in needed) else None


def _is_given(split: Split) -> bool:
    return split.method in ("", "given")


def _split_of(own: Split) -> Split:
    """How feedback is divided: as the model's own data was, or where that came divided by a hash."""
    if _is_given(own):
        return Split(method="hash", fractions=FRACTIONS, seed=own.seed)
    return own


def _divide(
    task: Task, feedback: pa.Table, split: Split, own: Mapping[str, pa.Table], *, is_given: bool
) -> dict[str, pa.Table]:
    """The parts of feedback, joined with the model's own, if any.

    Where a rule divided these, it divides both together, so that equal examples come into one part. Where they were
    given they stay as they are, and what equals an example of their validation or test part is left out.
    """
    import pyarrow as pa

    if own and is_given:
        held = [row for name in ("validation", "test") for row in own[name].to_pylist()]
        known = {repr(row) for row in held}
        feedback = feedback.filter(pa.array([repr(row) not in known for row in feedback.to_pylist()], pa.bool_()))
        drawn = task.split(feedback, split)
        return {name: pa.concat_tables([own[name], drawn[name]]) for name in PARTS}
    drawn = task.split(pa.concat_tables([*own.values(), feedback]), split)
    return {name: drawn.get(name, feedback.slice(0, 0)) for name in PARTS}
