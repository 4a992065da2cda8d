"""Text classification: each text gets one class. Any encoder of the Hugging Face library is a base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.hookspecs import hookimpl
from luthier.task import Codec, DataProblem, Evaluation, Split, Task, Trainer
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
    description = "Assigns each text to one of the classes that its training examples show."
    service = pb.DESCRIPTOR.services_by_name["TextClassificationService"]
    config = pb.Config
    example = pb.Example
    primary_metric = "accuracy"
    bases = ("minilm-l6",)

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
        from luthier_text_classification import metrics

        return metrics.score(examples["label"].to_pylist(), predictions)

    def grades(self, examples: pa.Table, predictions: Sequence[Any]) -> list[float]:
        """The probability of the class predicted, negative where it is wrong: last comes the surest mistake."""
        return [
            prediction.score if prediction.label == label else -prediction.score
            for label, prediction in zip(examples["label"].to_pylist(), predictions, strict=True)
        ]


@hookimpl
def luthier_tasks() -> list[Task]:
    """Brings the task."""
    return [TextClassification()]
