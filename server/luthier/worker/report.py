"""The report of an evaluation: one HTML page with scores, curves, confusions and examples that refers to nothing else.

What takes time is prepared before the evaluation is published; the page is written within the publishing transaction,
when the names of version and evaluation are known. An evaluation never fails for want of its report.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import Message
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from luthier.errors import NotFound
from luthier.operations import Operations
from luthier.task import Picture, Task
from luthier.v1.evaluation_pb2 import ClassScores, ConfusionMatrix, Curve, Evaluation
from luthier.v1.model_pb2 import ModelVersion
from luthier.v1.operation_pb2 import OperationMetadata
from luthier.worker import charts, plain
from luthier.worker.charts import Chart, Series
from luthier.worker.job import Job

if TYPE_CHECKING:
    import pyarrow as pa

log = structlog.get_logger()

WORST, BEST = 8, 4
"""Examples shown."""
MATRIX_CLASSES = 30
"""More classes do not fit a page as a matrix."""
CONFUSIONS = 20
"""Shown of those where there is no matrix."""
PICTURE_PIXELS = 512
"""The longer side of a large picture, once it is scaled down."""
PICTURE_BYTES = 2**17
"""A larger PNG is scaled down and becomes WebP; a larger SVG is left out."""


@dataclass(frozen=True)
class Shown:
    """One example as the report shows it."""

    number: int
    """From 1, in the part that was scored."""
    grade: float
    picture: str
    """A data: URI; empty where there is none."""
    truth: dict[str, str]
    prediction: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What takes time of a report."""

    task: Task
    training: list[Chart]
    worst: list[Shown]
    best: list[Shown]

    def html(self, version: ModelVersion, evaluation: Evaluation) -> str:
        """The page."""
        config = self.task.config()
        version.config.Unpack(config)
        key = _class_metric(self.task, evaluation)
        return _TEMPLATES.get_template(f"{Path(__file__).stem}.html.j2").render(
            evaluation=evaluation,
            task=self.task,
            version=version,
            settings=plain.texts(config),
            figures=[(name, plain.number(value)) for name, value in sorted(version.training.items())],
            metrics=_metrics(self.task, evaluation),
            training=self.training,
            curves=_curves(evaluation.curves),
            class_metric=key,
            class_metrics=_class_metrics(evaluation),
            classes=_worst_first(self.task, evaluation, key),
            matrix=_matrix(evaluation.confusion_matrix),
            confusions=_confusions(evaluation.confusion_matrix),
            worst=self.worst,
            best=self.best,
            charts=charts,
            luthier=version_of("luthier"),
        )


def prepare(job: Job, task: Task, operation: str, examples: pa.Table, predictions: Sequence[Message]) -> Draft | None:
    """Grades, draws and collects; None where that fails, which the log explains. Raises Cancelled.

    `operation` is the fine-tune, whose events have the training's curves; `predictions` are those for
    `task.instances(examples)`.
    """
    job.progress("drawing the report", 0, 1)
    try:
        worst, best = _shown(task, examples, predictions)
        return Draft(task=task, training=_training(job.tools.operations, operation), worst=worst, best=best)
    except Exception:  # Tasks grade and draw as they like, and an evaluation is worth more than its report.
        log.exception("report failed", operation=job.claim.operation)
        return None


def keep(job: Job, draft: Draft | None, version: ModelVersion, evaluation: Evaluation) -> None:
    """Writes the report once version and evaluation have names, before the transaction that publishes them ends."""
    if draft is None:
        return
    try:
        page = draft.html(version, evaluation).encode()
        job.tools.store.write(page, job.tools.store.report(evaluation.name.rpartition("/")[2]))
    except Exception:  # As above.
        log.exception("report failed", operation=job.claim.operation)


def _shown(task: Task, examples: pa.Table, predictions: Sequence[Message]) -> tuple[list[Shown], list[Shown]]:
    """The worst examples, worst first, and the best, best first; none is in both."""
    grades = task.grades(examples, predictions)
    rows = task.rows(examples)
    graded = [i for i, grade in enumerate(grades) if not math.isnan(grade)]
    ranked = sorted(graded, key=lambda i: (grades[i], i))
    middle = max(len(ranked) - BEST, len(ranked) // 2)

    def show(index: int) -> Shown:
        chosen = examples.take(rows[index])
        instance = task.instances(chosen)[0]
        picture = task.render(instance, predictions[index])
        truth, prediction = plain.columns(chosen), plain.texts(predictions[index])
        return Shown(rows[index][0] + 1, grades[index], _uri(picture), truth, prediction)

    return [show(i) for i in ranked[:middle][:WORST]], [show(i) for i in reversed(ranked[middle:])]


def _uri(picture: Picture | None) -> str:
    """A picture within the page. As the source of an image, an SVG can neither run a script nor load anything."""
    if picture is None:
        return ""
    content, kind = picture.content, picture.media_type
    if len(content) > PICTURE_BYTES:
        if kind != "image/png":
            return ""
        content, kind = _scaled_down(content), "image/webp"
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _scaled_down(png: bytes) -> bytes:
    from PIL import Image

    from luthier import images

    image = Image.fromarray(images.decode(png))
    image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=85)
    return stream.getvalue()


def _training(operations: Operations, operation: str) -> list[Chart]:
    """Losses in one chart, validation metrics between 0 and 1 in another, each further one in its own."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    try:
        events = operations.events(operation, 0)
    except NotFound:  # Who deletes an operation deletes what it said.
        return []
    for event in events:
        if event.HasField("state") and event.state == OperationMetadata.STATE_RUNNING:
            # An attempt that came to nothing said things too.
            series.clear()
        for name, value in event.metrics.values.items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(event.metrics.step)
            values.append(value)
    groups: dict[str, list[Series]] = {}
    for name, (steps, values) in sorted(series.items()):
        last = name.rpartition("/")[2]
        if last != "loss" and not name.startswith("validation/"):
            continue
        shares = all(0 <= value <= 1 for value in values)
        group = "Loss" if last == "loss" else "Validation" if shares else last
        groups.setdefault(group, []).append(Series(name, steps, values))
    drawn = (charts.chart(title, "step", "", lines) for title, lines in groups.items())
    return [each for each in drawn if each]


def _curves(curves: Sequence[Curve]) -> list[Chart]:
    by_title: dict[str, list[Curve]] = {}
    for curve in curves:
        by_title.setdefault(curve.title, []).append(curve)
    drawn = (
        charts.chart(
            title,
            lines[0].x_label,
            lines[0].y_label,
            [Series(line.label, line.x, line.y, line.reference) for line in lines],
            unit=True,
        )
        for title, lines in by_title.items()
    )
    return [each for each in drawn if each]


def _metrics(task: Task, evaluation: Evaluation) -> list[tuple[str, float]]:
    """Names and values, the primary metric first."""
    return sorted(evaluation.metrics.items(), key=lambda item: (item[0] != task.primary_metric, item[0]))


def _class_metrics(evaluation: Evaluation) -> list[str]:
    """Names of the classes' scores; the usual three in the usual order, before others."""
    usual = ("precision", "recall", "f1")
    names = {name for scores in evaluation.per_class for name in scores.metrics}
    return [*(name for name in usual if name in names), *sorted(names.difference(usual))]


def _class_metric(task: Task, evaluation: Evaluation) -> str:
    """What classes are ranked by: the primary metric or what it is the mean of (mAP, mIoU), or F1, or the first."""
    names = _class_metrics(evaluation)
    wanted = (task.primary_metric, task.primary_metric.removeprefix("m"), "f1")
    return next((name for name in wanted if name in names), names[0] if names else "")


def _worst_first(task: Task, evaluation: Evaluation, key: str) -> list[ClassScores]:
    sign = -1 if task.lower_is_better and key == task.primary_metric else 1

    def rank(scores: ClassScores) -> tuple[bool, float, str]:
        value = scores.metrics.get(key, math.nan)
        return math.isnan(value), 0.0 if math.isnan(value) else sign * value, scores.label

    return sorted(evaluation.per_class, key=rank)


def _matrix(matrix: ConfusionMatrix) -> list[tuple[str, list[tuple[int, float]]]]:
    """For each true class the count and its share of the row for each predicted class; empty where it does not fit."""
    labels = matrix.labels
    if not labels or len(labels) > MATRIX_CLASSES:
        return []
    rows = []
    for index, label in enumerate(labels):
        counts = matrix.counts[index * len(labels) : (index + 1) * len(labels)]
        rows.append((label, [(count, count / max(1, sum(counts))) for count in counts]))
    return rows


def _confusions(matrix: ConfusionMatrix) -> list[tuple[str, str, int, float]]:
    """The most frequent ones where the matrix does not fit: true class, predicted class, count, share of the true."""
    labels = matrix.labels
    if len(labels) <= MATRIX_CLASSES:
        return []
    found = []
    for index, label in enumerate(labels):
        counts = matrix.counts[index * len(labels) : (index + 1) * len(labels)]
        total = sum(counts)
        found += [
            (label, labels[column], count, count / total)
            for column, count in enumerate(counts)
            if count and column != index
        ]
    return sorted(found, key=lambda confusion: (-confusion[2], confusion[:2]))[:CONFUSIONS]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": plain.number, "count": plain.count, "short": plain.short, "name": _name}
    return environment


def _name(resource: str) -> str:
    """`beer/3` of `models/beer/versions/3`, as the command line takes it."""
    parts = resource.split("/")
    return "/".join(parts[1::2]) if len(parts) > 1 else resource


_TEMPLATES = _environment()
