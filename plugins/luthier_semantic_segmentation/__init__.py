"""Semantic segmentation: each pixel of an image gets one class.

Bases are torchvision's segmenters, and any backbone of timm under a head of the plugin's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import facts
from luthier.hookspecs import hookimpl
from luthier.task import Codec, DataFile, DataProblem, Evaluation, Picture, ReadOption, Split, Task, Trainer
from luthier.tasks.semantic_segmentation.v1 import semantic_segmentation_pb2 as pb

if TYPE_CHECKING:
    import pyarrow as pa
    from google.protobuf.message import Message


MOST_CLASSES = 32
"""Classes whose shares are facts: with very many, what chance may do to each would hide what happens to one."""


class SemanticSegmentation(Task):
    """The task `semantic-segmentation`."""

    id = "semantic-segmentation"
    title = "Semantic segmentation"
    description = "Assigns each pixel of an image to one of the classes that its training masks show."
    service = pb.DESCRIPTOR.services_by_name["SemanticSegmentationService"]
    config = pb.Config
    example = pb.Example
    primary_metric = "miou"
    bases = ("mobilenetv2-100",)
    formats = ("masks", "coco")
    archives = ("masks", "coco")
    read_options = {
        "ignore": ReadOption(
            help="Pixels of mask files that stand for no class: a value from 0 to 255, or a colour as #rrggbb. "
            "auto: 255, unless the masks hold nothing but 0 and 255 or a file names it. none: only those that such a "
            "file leaves without a name.",
            default="auto",
        ),
    }

    def read(self, file: DataFile) -> pa.Table | Mapping[str, pa.Table]:
        """Reads a zip of images with mask files, or with COCO's JSON."""
        from luthier_semantic_segmentation import layouts

        return layouts.read(file)

    def split(self, examples: pa.Table, split: Split) -> dict[str, pa.Table]:
        """Divides by a hash of the image's bytes, so that no image is in two parts, whatever its mask."""
        from luthier import tabular

        return tabular.split_by_hash(examples, split, key=("image",))

    def validate(self, parts: Mapping[str, pa.Table]) -> Iterable[tuple[bool, DataProblem]]:
        """Looks for classes that cannot be learned or scored, masks without any, and images in two parts."""
        from luthier_semantic_segmentation import data

        return data.problems(parts)

    def describe(self, parts: Mapping[str, pa.Table]) -> dict[str, Any]:
        """Counts the pixels of the classes and measures the images."""
        from luthier_semantic_segmentation import data

        return data.statistics(parts)

    def trainer(self) -> Trainer:
        """PyTorch, timm and torchvision."""
        from luthier_semantic_segmentation import training

        return training

    def open(self, directory: Path) -> Codec:
        """The labels and the input size of a bundle."""
        from luthier_semantic_segmentation.codec import SemanticSegmentationCodec

        return SemanticSegmentationCodec(directory)

    def instances(self, examples: pa.Table) -> list[Message]:
        """The images, asked for masks as run lengths."""
        return [pb.Instance(image=image) for image in examples["image"].to_pylist()]

    def render(self, instance: Message, prediction: Message) -> Picture:
        """The image with its classes laid over it in colours."""
        from luthier_semantic_segmentation import drawing

        return drawing.draw(instance, prediction)

    def features(self, instance: Any, prediction: Any) -> dict[str, float | str]:
        """What the image looks like, the share of it that each class covers, and the class that covers most."""
        found: dict[str, float | str] = {}
        if instance is not None:
            found.update(facts.of_image(instance.image))
        for area in prediction.classes[:MOST_CLASSES]:
            found[f"share of {area.label}"] = area.share
        if prediction.classes:
            found["largest"] = max(prediction.classes, key=lambda area: area.pixels).label
        return found

    def score(self, examples: pa.Table, predictions: Sequence[Any]) -> Evaluation:
        """Mean intersection over union, accuracy, both by class, and the confusion matrix of pixels."""
        from luthier_semantic_segmentation import metrics

        return metrics.score(examples, predictions)


@hookimpl
def luthier_tasks() -> list[Task]:
    """Brings the task."""
    return [SemanticSegmentation()]
