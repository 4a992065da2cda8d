"""The contract between the server and a task.

A plugin brings a `Task`: what the server needs to know, light enough for the serving process. Its `trainer()`, usually
the plugin's module `training`, is imported only where models are made; its `open()` gives the `Codec` that turns
instances into the arrays of the ONNX model and back. Examples are Arrow tables whose columns are the fields of the
task's example message; instances and predictions are protobuf messages of the task's own service.
"""

from __future__ import annotations

import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from luthier.errors import FailedPrecondition, InvalidArgument, InvalidData, ParityFailed
from luthier.v1.dataset_pb2 import DataProblem, Split
from luthier.v1.evaluation_pb2 import ClassScores, ConfusionMatrix, Curve, Evaluation

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = [
    "ClassScores",
    "Codec",
    "ConfusionMatrix",
    "Curve",
    "DataFile",
    "DataProblem",
    "Evaluation",
    "FailedPrecondition",
    "InvalidArgument",
    "InvalidData",
    "Method",
    "ParityFailed",
    "Picture",
    "ReadOption",
    "Run",
    "Split",
    "Task",
    "Trainer",
]

PARTS = ("train", "validation", "test")
"""The parts of a data set version, in the order they are stored and hashed."""

MODEL_FILE = "model.onnx"
"""What every bundle's model is called."""

GRADED = 400
"""Predictions that are graded one by one where a task has no quicker way."""


_SHORT = 64
"""Characters of a text that tell it from others as a category."""


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One uploaded file to read examples from."""

    path: Path
    """Where its bytes are."""
    name: str
    """What the user calls it; errors name it."""
    format: str
    """One of the task's formats; empty for an archive whose layout was not stated."""
    role: str = ""
    """`train`, `validation`, `test`, empty, or one of the task's `extra_files`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of the file for a field of the example, where they differ."""
    header: bool = True
    """False where the file begins with data; its columns are then called `0`, `1`, …"""
    options: Mapping[str, str] = field(default_factory=dict)
    """The task's `read_options` by name, each stated or its default."""
    lenient: bool = False
    """Whether rows that cannot be read and images that cannot be decoded are left out, with a warning each."""
    warnings: list[DataProblem] = field(default_factory=list)
    """For a reader to add what is odd in the file, and yet read."""


@dataclass(frozen=True)
class ReadOption:
    """A choice that users have in how a task reads files."""

    help: str
    """A sentence or two for people: what the choice is about, and what each value does."""
    default: str
    choices: tuple[str, ...] = ()
    """The only values allowed; empty: any, which `Task.read` checks."""


@dataclass(frozen=True)
class Picture:
    """A prediction as people look at it."""

    content: bytes
    media_type: str
    """`image/png` or `image/svg+xml`."""


@dataclass(frozen=True)
class Method:
    """A unary method of a task's service: its request has `model` and `instances`, its response `model_version` and
    `predictions`."""

    name: str
    request: type[Message]
    response: type[Message]
    instance: type[Message]
    prediction: type[Message]

    @classmethod
    def of(cls, method: MethodDescriptor) -> Method:
        """Reads a method's messages from its descriptor, and raises TypeError where they lack those fields."""
        request, response = method.input_type.fields_by_name, method.output_type.fields_by_name
        if not {"model", "instances"} <= {*request} or not {"model_version", "predictions"} <= {*response}:
            raise TypeError(
                f"{method.full_name}: the request needs the fields `model` and `instances`, the response "
                "`model_version` and `predictions`"
            )
        return cls(
            name=method.name,
            request=GetMessageClass(method.input_type),
            response=GetMessageClass(method.output_type),
            instance=_message_of(request["instances"]),
            prediction=_message_of(response["predictions"]),
        )


class Codec(ABC):
    """The two ends of a served model: instances to arrays, arrays to predictions. It is called from many threads."""

    max_rows: ClassVar[int] = 0
    """Most rows to compute at once, which bounds the memory where one instance may have any number of them. The model
    is then run on so many after the other, and the first axis of all its inputs and outputs is that of the rows. 0:
    all at once."""

    @abstractmethod
    def encode(self, instances: Sequence[Message]) -> Mapping[str, np.ndarray]:
        """Returns the model's inputs by name. The first axis of each has one row for each instance, or more where the
        codec cuts instances into several, as long texts into windows; `decode` then finds out whose each row is.

        Raises InvalidArgument with one entry `instances[i].field` for everything that is wrong.
        """

    @abstractmethod
    def decode(self, outputs: Mapping[str, np.ndarray], instances: Sequence[Message]) -> list[Message]:
        """Returns one prediction for each instance from the model's outputs by name."""


class Trainer(Protocol):
    """How models are made. A plugin's module `training` with these three functions is one."""

    def fine_tune(self, run: Run) -> Any:
        """Makes a model from `run.base`, `run.parts` and `run.config`; calls `run.report` often."""

    def predict(self, model: Any, instances: Sequence[Message]) -> list[Message]:
        """Predicts in the training framework, without the codec: the other side of the parity measurement."""

    def export(self, model: Any, directory: Path) -> None:
        """Writes `model.onnx` (with a dynamic batch) and all that the codec needs into an empty folder."""


class Stopped(Exception):
    """Raised by a training that was to pause, after it has saved where it stands."""


@dataclass(kw_only=True)
class Run:
    """One fine-tune, as the trainer sees it."""

    parts: Mapping[str, pa.Table]
    """`train`; `validation`, which may have no rows; and the extra files of the data set by role. Never `test`."""
    config: Any
    """The task's config message with every default filled in."""
    base: Path | None
    """Files of the base, or of the bundle of an earlier version; None where a task starts from nothing."""
    seed: int
    directory: Path
    """For checkpoints and other files of this run. Another attempt at it finds what the last one left there."""
    device: str = "cpu"
    emit: Callable[[dict[str, Any]], None] = lambda event: None
    """Takes an OperationEvent in its JSON form: a progress, metrics, a message or a checkpoint."""
    cancelled: Callable[[], bool] = lambda: False
    paused: Callable[[], bool] = lambda: False
    """Whether to save where the training stands and raise Stopped; a trainer that cannot is ended after some time."""
    checkpoint_s: float = 60.0
    """Least seconds between two saves of where the training stands."""
    warm_start: bool = False
    """True where `base` is the bundle of an earlier version of a model, not an entry of the catalogue."""
    figures: dict[str, float] = field(default_factory=dict)
    """Figures of the training that are kept with the version, such as seconds and examples a second."""

    _stage: str = field(default="", init=False)
    _started: float = field(default=0.0, init=False)
    _first: tuple[int, int] = field(default=(0, 0), init=False)

    def report(self, step: int, total: int, *, stage: str = "training", examples: int = 0, **metrics: float) -> None:
        """Says that `step` of `total` steps of a stage are done, and what was measured at it.

        `examples` is the number of examples done in the stage so far; throughput and remaining time follow from what
        was done since the first report of the stage.
        Raises Cancelled where the operation was cancelled.
        """
        from luthier.errors import Cancelled

        if self.cancelled():
            raise Cancelled("the operation was cancelled")
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._first = stage, now, (step, examples)
        seconds, done = now - self._started, step - self._first[0]
        progress: dict[str, Any] = {"stage": stage, "step": step, "total": total}
        if seconds > 0:
            progress["examples_per_s"] = (examples - self._first[1]) / seconds
            if done > 0:
                progress["remaining_s"] = seconds / done * (total - step)
        self.emit({"progress": progress})
        if metrics:
            self.emit({"metrics": {"step": step, "values": {name: float(value) for name, value in metrics.items()}}})


class Task(ABC):
    """One kind of work. Subclass it, and return an instance from the hook `luthier_tasks`."""

    id: ClassVar[str]
    """Small letters, digits and `-`, for instance `text-classification`."""
    title: ClassVar[str]
    description: ClassVar[str] = ""
    service: ClassVar[ServiceDescriptor]
    """The typed service; its first unary method is the one for evaluation."""
    config: ClassVar[type[Message]]
    """Config message; its fields are `optional` and carry `(luthier.v1.field)`."""
    example: ClassVar[type[Message]]
    """Example message; its fields are the columns of the examples."""
    primary_metric: ClassVar[str]
    """What parity and checkpoints are judged by."""
    lower_is_better: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    """Whether the primary metric of many predictions is the plain mean of that of each alone, as accuracy is and F1 is
    not. It says that the metric of feedback need not be computed anew for each sample of a bootstrap."""
    bases: ClassVar[tuple[str, ...]] = ()
    """Ids of bases that suit, the default first. Empty where a fine-tune may start from nothing."""
    goes_on: ClassVar[bool] = False
    """Whether what is tuned on feedback begins at the version that the feedback is of, whose bundle then is the `base`
    of its fine-tune. Where not, it begins where that version began."""
    formats: ClassVar[tuple[str, ...]] = ("csv", "tsv", "jsonl", "parquet")
    archives: ClassVar[tuple[str, ...]] = ()
    """Those of `formats` that are a folder of files, sent as a zip: layouts, such as `coco`. See `luthier.archives`."""
    extra_files: ClassVar[tuple[str, ...]] = ()
    """Roles of files beside the parts, for instance `titles`; `read` gets them too."""
    splits: ClassVar[tuple[str, ...]] = ("hash",)
    read_options: ClassVar[Mapping[str, ReadOption]] = {}
    """What users may choose in how files are read, by name; `read` finds every one in `DataFile.options`."""

    @property
    def methods(self) -> list[Method]:
        """The unary methods of the service."""
        unary = (m for m in self.service.methods if not (m.client_streaming or m.server_streaming))
        return [Method.of(method) for method in unary]

    # Data: called in a worker.

    def read(self, file: DataFile) -> pa.Table | Mapping[str, pa.Table]:
        """Reads a file into a table with the columns of `example`; raises InvalidData with every problem in it.

        An archive may hold more than one table: then they are given by role, which is a part, an extra file, or empty
        for examples that are to be split. As it stands: CSV, TSV, JSONL and Parquet with one row an example.
        """
        from luthier import tabular

        return tabular.read(file, self.example)

    def split(self, examples: pa.Table, split: Split) -> dict[str, pa.Table]:
        """Divides examples that came without parts. As it stands: by a stable hash of the example's content."""
        from luthier import tabular

        return tabular.split_by_hash(examples, split)

    def validate(self, parts: Mapping[str, pa.Table]) -> Iterable[tuple[bool, DataProblem]]:
        """Yields what is wrong with the data beyond the columns' types, each as (fatal, problem)."""
        return ()

    def describe(self, parts: Mapping[str, pa.Table]) -> dict[str, Any]:
        """Statistics for people, as plain JSON values."""
        return {}

    # Training: called in a trainer process.

    @abstractmethod
    def trainer(self) -> Trainer:
        """Imports and returns what makes models."""

    # Serving and evaluation: called without the training framework.

    @abstractmethod
    def open(self, directory: Path) -> Codec:
        """Opens the codec of a bundle that `Trainer.export` wrote."""

    @abstractmethod
    def instances(self, examples: pa.Table) -> list[Message]:
        """What to ask a model in order to score it on these examples: messages of the first method's instance type."""

    def render(self, instance: Message, prediction: Message) -> Picture | None:
        """Draws a prediction for people; None where looking at it says no more than reading it."""
        return None

    @abstractmethod
    def score(self, examples: pa.Table, predictions: Sequence[Message]) -> Evaluation:
        """Scores predictions for `instances(examples)`: fills metrics, num_examples, and as far as the task has them
        per_class, confusion_matrix and curves; `luthier.curves` draws the usual ones."""

    def compare(self, config: Any, source: Sequence[Message], served: Sequence[Message]) -> Mapping[str, float]:
        """Figures of how near the bundle that is published comes to the model it was exported from, beside parity.

        `source` and `served` are their predictions for the same instances, those that parity is judged on. The figures
        are kept with the version, among those of its training. Raises ParityFailed where it falls short of what the
        config demands; then nothing is published. As it stands: none.
        """
        return {}

    # Watching what is live: called in the serving process and in workers, without the training framework.

    def features(self, instance: Message | None, prediction: Message) -> Mapping[str, float | str | Sequence[str]]:
        """Small named facts of an input and of its prediction, by which a window of live ones is compared with those of
        the test part: numbers, categories, or bags of words. A fact that an input does not have is left out.

        `instance` is None where inputs are not kept: then only the prediction speaks. Facts are cheap, at most some
        milliseconds, and depend on nothing else. As it stands: the numbers, flags and enums of the prediction, and
        the beginnings of its texts.
        """
        return dict(_plain_facts(prediction))

    def confidences(self, examples: pa.Table, predictions: Sequence[Message]) -> Sequence[tuple[float, bool]]:
        """How sure each prediction for `instances(examples)` is, between 0 and 1, and whether it is right, for the
        calibration of what is live. As it stands: none, for tasks without classes."""
        return ()

    def rows(self, examples: pa.Table) -> Sequence[Sequence[int]]:
        """The rows that each of `instances(examples)` stands for. As it stands: one row each, in order."""
        return [[row] for row in range(examples.num_rows)]

    def grades(self, examples: pa.Table, predictions: Sequence[Message]) -> Sequence[float]:
        """How good each prediction for `instances(examples)` is, for a report to show the best and the worst.

        A higher grade is better, and one that is not a number leaves the prediction out. As it stands: the primary
        metric of each prediction alone, its sign turned where lower is better, for GRADED predictions drawn by chance
        where there are more.
        """
        sign = -1 if self.lower_is_better else 1
        rows = self.rows(examples)
        grades = [math.nan] * len(predictions)
        for index in random.Random(0).sample(range(len(predictions)), min(GRADED, len(predictions))):
            alone = self.score(examples.take(rows[index]), [predictions[index]])
            grades[index] = sign * alone.metrics[self.primary_metric]
        return grades

    def truth(self, labels: Sequence[Message], prediction: Message, instance: Message | None) -> pa.Table:
        """The examples that feedback on a prediction stands for, to be scored with it.

        `labels` are example messages, whose inputs may be left out; `instance` is what the prediction was made from, or
        None where that was not kept. As it stands: a row for each label, in which an empty field takes the value of the
        instance's field of the same name and type.
        """
        from luthier import tabular

        return tabular.of_messages(self.example, [_filled(label, instance) for label in labels])


def _filled(label: Message, instance: Message | None) -> Message:
    filled = type(label)()
    filled.CopyFrom(label)
    if instance is None:
        return filled
    given = {of.name: (of.type, value) for of, value in instance.ListFields() if not of.is_repeated}
    there = {of.name for of, _ in label.ListFields()}
    for of in label.DESCRIPTOR.fields:
        type_, value = given.get(of.name, (None, None))
        if type_ == of.type and not (of.is_repeated or of.message_type or of.name in there):
            setattr(filled, of.name, value)
    return filled


def _plain_facts(prediction: Message) -> Iterator[tuple[str, float | str]]:
    """The fields of a prediction that hold one plain value each."""
    for one in prediction.DESCRIPTOR.fields:
        value = getattr(prediction, one.name)
        if one.is_repeated or one.message_type or isinstance(value, bytes):
            continue
        if one.enum_type:
            known = one.enum_type.values_by_number.get(value)
            yield one.name, known.name if known else str(value)
        elif isinstance(value, str):
            yield one.name, value[:_SHORT]
        elif math.isfinite(value):
            yield one.name, float(value)


def _message_of(field: FieldDescriptor) -> type[Message]:
    if field.message_type is None:
        raise TypeError(f"{field.full_name} must be a repeated message")
    return GetMessageClass(field.message_type)
