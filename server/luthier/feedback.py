"""What feedback on predictions comes to, by the task's own score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from luthier.comparison import Labelled
from luthier.errors import InvalidArgument, LuthierError
from luthier.journal import Recorded
from luthier.task import Task

if TYPE_CHECKING:
    import pyarrow as pa

log = structlog.get_logger()

M = TypeVar("M", bound=Message)


def value_of(task: Task, recorded: Recorded, labels: Sequence[AnyMessage]) -> float:
    """The primary metric of one prediction by its labels; raises InvalidArgument for labels that are none of its task,
    or that do not fit it."""
    examples = _examples(task, labels)
    prediction, truth = _with_truth(task, recorded, examples)
    try:
        count = len(task.rows(truth))
        if count == 1:
            value = task.score(truth, [prediction]).metrics[task.primary_metric]
    except LuthierError:
        raise
    except Exception as error:
        log.warning("labels refused", task=task.id, why=repr(error))
        raise InvalidArgument(
            {"labels": f"{task.id} cannot score the prediction by them; they do not fit it"}
        ) from error
    if count != 1:
        raise InvalidArgument({"labels": f"they stand for {count} examples; a prediction has one"})
    if not math.isfinite(value):
        raise InvalidArgument({"labels": f"the {task.primary_metric} by them is not a number"})
    return float(value)


def labelled(task: Task, recorded: Sequence[Recorded]) -> Labelled:
    """Predictions with feedback, ready to be compared."""
    values = [one.value if one.value is not None else math.nan for one in recorded]
    callers = [one.caller for one in recorded]
    if task.averages:
        return Labelled(values, callers)
    import pyarrow as pa

    pairs = [_with_truth(task, one, _examples(task, one.labels)) for one in recorded]

    def score(places: Sequence[int]) -> float:
        table = pa.concat_tables([pairs[place][1] for place in places])
        predictions = [pairs[place][0] for place in places]
        return float(task.score(table, predictions).metrics[task.primary_metric])

    return Labelled(values, callers, score)


def _with_truth(task: Task, recorded: Recorded, examples: Sequence[Message]) -> tuple[Message, pa.Table]:
    method = task.methods[0]
    prediction = method.prediction.FromString(recorded.prediction.value)
    instance = method.instance.FromString(recorded.instance.value) if recorded.instance else None
    return prediction, task.truth(examples, prediction, instance)


def _examples(task: Task, labels: Sequence[AnyMessage]) -> list[Message]:
    wanted = task.example.DESCRIPTOR.full_name
    wrong, examples = {}, []
    for index, label in enumerate(labels):
        if label.TypeName() != wanted:
            wrong[f"labels[{index}]"] = f"a {label.TypeName() or 'message without type'}, not a {wanted}"
            continue
        try:
            examples.append(task.example.FromString(label.value))
        except DecodeError:
            wrong[f"labels[{index}]"] = f"bytes that are no {wanted}"
    if not labels:
        wrong["labels"] = "there are none"
    if wrong:
        raise InvalidArgument(wrong)
    return examples
