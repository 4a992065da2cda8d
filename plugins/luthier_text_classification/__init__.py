"""Text classification: each text gets one class, or any number where it learnt from texts with several labels.

Any encoder of the Hugging Face library is a base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier import facts
from luthier.hookspecs import hookimpl
from luthier.task import Codec, DataFile, DataProblem, Evaluation, ReadOption, Split, Task, Trainer
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb

if TYPE_CHECKING:
    import pyarrow as pa
    from google.protobuf.message import Message


SCORED = 20
"""Classes that an evaluation asks of each text: the others have a probability below 1 / 21."""


class TextClassification(Task):
    """The task `text-classification`."""

    id = "text-classification"
    title = "Text classification"
    description = "Assigns each text to one of the classes that its training examples show, or to several."
    service = pb.DESCRIPTOR.services_by_name["TextClassificationService"]
    config = pb.Config
    example = pb.Example
    primary_metric = "accuracy"
    averages = True
    bases = ("minilm-l6",)
    goes_on = True
    read_options: ClassVar = {
        "labels": ReadOption(
            help="How many classes a text has: one, or several, which is any number and none too.",
            default="one",
            choices=("one", "several"),
        ),
        "separator": ReadOption(
            help="With several: what divides the names of classes in one cell of a CSV or TSV file.", default=","
        ),
    }

    def read(self, file: DataFile) -> pa.Table:
        """One row a text. Several labels are a list, names in one cell, or a column of 0 and 1 for each."""
        from luthier_text_classification import data

        return data.read(file)

    def split(self, examples: pa.Table, split: Split) -> dict[str, pa.Table]:
        """Divides by a hash of the text alone, so that a text never occurs in two parts, whatever its labels."""
        from luthier import tabular

        return tabular.split_by_hash(examples, split, key=("text",))

    def validate(self, parts: Mapping[str, pa.Table]) -> Iterable[tuple[bool, DataProblem]]:
        """Looks for empty texts, classes that cannot be learned or scored, and texts that contradict or leak."""
        from luthier_text_classification import data

        return data.problems(parts)

    def describe(self, parts: Mapping[str, pa.Table]) -> dict[str, Any]:
        """Counts the classes and measures the texts."""
        from luthier_text_classification import data

        return data.statistics(parts)

    def trainer(self) -> Trainer:
        """PyTorch and transformers."""
        from luthier_text_classification import training

        return training

    def open(self, directory: Path) -> Codec:
        """The tokenizer and the labels of a bundle."""
        from luthier_text_classification.codec import TextClassificationCodec

        return TextClassificationCodec(directory)

    def instances(self, examples: pa.Table) -> list[Message]:
        """The texts, with more than the best class asked of each, for the curves."""
        return [pb.Instance(text=text, top_k=SCORED) for text in examples["text"].to_pylist()]

    def score(self, examples: pa.Table, predictions: Sequence[Any]) -> Evaluation:
        """Accuracy; precision, recall and F1 by class and averaged; the confusion matrix; precision-recall curves."""
        from luthier_text_classification import data, metrics

        if data.several(examples):
            return metrics.score_several(data.labels_of(examples), predictions)
        return metrics.score(examples["label"].to_pylist(), predictions)

    def truth(self, labels: Sequence[Any], prediction: Any, instance: Any) -> pa.Table:
        """One text with its class; or with the classes of all labels that are not empty, where there is not one label
        or the prediction has a set of classes. So an empty label beside another says that there is no third."""
        from luthier_text_classification import data

        table = super().truth(labels, prediction, instance)
        return data.together(table) if len(labels) != 1 or prediction.labels else table

    def features(self, instance: Any, prediction: Any) -> dict[str, float | str | Sequence[str]]:
        """What the text looks like, its class and the probability of that; with several labels how many it got."""
        found: dict[str, float | str | Sequence[str]] = {}
        if instance is not None:
            found.update(facts.of_text(instance.text))
        found.update(facts.of_classes(prediction.label, prediction.score, prediction.top))
        if prediction.labels:
            found["labels"] = [entry.label for entry in prediction.labels]
        return found

    def confidences(self, examples: pa.Table, predictions: Sequence[Any]) -> list[tuple[float, bool]]:
        """The probability of the best class, and whether it is the text's, or one of the text's."""
        from luthier_text_classification import data

        pairs = zip(predictions, data.labels_of(examples), strict=True)
        return [(prediction.score, prediction.label in labels) for prediction, labels in pairs]

    def grades(self, examples: pa.Table, predictions: Sequence[Any]) -> list[float]:
        """The probability of the class predicted, negative where it is wrong: last comes the surest mistake.

        With several labels the F1 of those that are given.
        """
        from luthier_text_classification import data

        if data.several(examples):
            return [_overlap(row, p) for row, p in zip(data.labels_of(examples), predictions, strict=True)]
        return [
            prediction.score if prediction.label == label else -prediction.score
            for label, prediction in zip(examples["label"].to_pylist(), predictions, strict=True)
        ]


def _overlap(labels: Sequence[str], prediction: Any) -> float:
    """F1 of the labels of one text, 1 where there are none on either side."""
    given = {entry.label for entry in prediction.labels}
    return 2 * len(given.intersection(labels)) / (len(given) + len(labels)) if given or labels else 1.0


@hookimpl
def luthier_tasks() -> list[Task]:
    """Brings the task."""
    return [TextClassification()]
