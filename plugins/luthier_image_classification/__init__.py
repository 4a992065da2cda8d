"""Image classification: each image gets one class. Any timm model is a base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import facts
from luthier.hookspecs import hookimpl
from luthier.task import Codec, DataFile, DataProblem, Evaluation, Picture, Split, Task, Trainer
from luthier.tasks.image_classification.v1 import image_classification_pb2 as pb

if TYPE_CHECKING:
    import pyarrow as pa
    from google.protobuf.message import Message

SCORED = 20
"""Classes that an evaluation asks of each image: the others have a probability below 1 / 21."""


class ImageClassification(Task):
    """The task `image-classification`."""

    id = "image-classification"
    title = "Image classification"
    description = "Assigns each image to one of the classes that its training examples show."
    service = pb.DESCRIPTOR.services_by_name["ImageClassificationService"]
    config = pb.Config
    example = pb.Example
    primary_metric = "accuracy"
    averages = True
    bases = ("mobilenetv2-100",)
    formats = ("folder", "manifest", "csv", "tsv", "jsonl", "parquet")
    archives = ("folder", "manifest")

    def read(self, file: DataFile) -> pa.Table | Mapping[str, pa.Table]:
        """Reads a folder for each class, a manifest with its images, or a table that holds images.

        Every image is decoded, so that no training meets a broken one.
        """
        from luthier_image_classification import files

        return files.read(file)

    def split(self, examples: pa.Table, split: Split) -> dict[str, pa.Table]:
        """Divides by a hash of the image's bytes alone, so that an image never occurs in two parts."""
        from luthier import tabular

        return tabular.split_by_hash(examples, split, key=("image",))

    def validate(self, parts: Mapping[str, pa.Table]) -> Iterable[tuple[bool, DataProblem]]:
        """Looks for classes that cannot be learned or scored, and for images that contradict or leak."""
        from luthier_image_classification import data

        return data.problems(parts)

    def describe(self, parts: Mapping[str, pa.Table]) -> dict[str, Any]:
        """Counts the classes and measures the images."""
        from luthier_image_classification import data

        return data.statistics(parts)

    def trainer(self) -> Trainer:
        """PyTorch and timm."""
        from luthier_image_classification import training

        return training

    def open(self, directory: Path) -> Codec:
        """The labels and the input size of a bundle."""
        from luthier_image_classification.codec import ImageClassificationCodec

        return ImageClassificationCodec(directory)

    def instances(self, examples: pa.Table) -> list[Message]:
        """The images, with more than the best class asked of each, for top-5 and the curves."""
        return [pb.Instance(image=image, top_k=SCORED) for image in examples["image"].to_pylist()]

    def render(self, instance: Any, prediction: Any) -> Picture:
        """The image, and under it a bar for each class of the prediction."""
        from luthier_image_classification import picture

        return picture.draw(instance.image, prediction)

    def score(self, examples: pa.Table, predictions: Sequence[Any]) -> Evaluation:
        """Accuracy; precision, recall and F1 by class and averaged; the confusion matrix and precision-recall curves.

        Where a model has more than five classes, top-5 accuracy too.
        """
        from luthier_image_classification import metrics

        return metrics.score(examples["label"].to_pylist(), predictions)

    def features(self, instance: Any, prediction: Any) -> dict[str, float | str]:
        """What the image looks like, its class and the probability of that."""
        image = facts.of_image(instance.image) if instance is not None else {}
        return {**image, **facts.of_classes(prediction.label, prediction.score, prediction.top)}

    def confidences(self, examples: pa.Table, predictions: Sequence[Any]) -> list[tuple[float, bool]]:
        """The probability of the class predicted, and whether it is right."""
        pairs = zip(predictions, examples["label"].to_pylist(), strict=True)
        return [(prediction.score, prediction.label == label) for prediction, label in pairs]

    def grades(self, examples: pa.Table, predictions: Sequence[Any]) -> list[float]:
        """The probability of the class predicted, negative where it is wrong: last comes the surest mistake."""
        return [
            prediction.score if prediction.label == label else -prediction.score
            for label, prediction in zip(examples["label"].to_pylist(), predictions, strict=True)
        ]


@hookimpl
def luthier_tasks() -> list[Task]:
    """Brings the task."""
    return [ImageClassification()]
