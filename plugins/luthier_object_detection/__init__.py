"""Object detection: finds the objects in an image, each with its class and its box.

Bases are torchvision's detectors in one stage, and any backbone of timm, which gets a feature pyramid and FCOS's head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import facts
from luthier.hookspecs import hookimpl
from luthier.task import Codec, DataFile, DataProblem, Evaluation, Picture, ReadOption, Split, Task, Trainer
from luthier.tasks.object_detection.v1 import object_detection_pb2 as pb

if TYPE_CHECKING:
    import pyarrow as pa
    from google.protobuf.message import Message

EVALUATION_THRESHOLD = 0.02
"""Score of the detections that are evaluated: a precision-recall curve needs the doubtful ones too."""


MOST_COUNTED = 100
"""Objects of an image that are counted for its facts: as many as an answer has where the request does not say."""


class ObjectDetection(Task):
    """The task `object-detection`."""

    id = "object-detection"
    title = "Object detection"
    description = "Finds the objects in an image: the class, the box and a score of each."
    service = pb.DESCRIPTOR.services_by_name["ObjectDetectionService"]
    config = pb.Config
    example = pb.Example
    primary_metric = "map"
    bases = ("mobilenetv2-100",)
    formats = ("coco", "voc", "yolo")
    archives = ("coco", "voc", "yolo")
    extra_files = ("classes",)
    read_options = {
        "boxes": ReadOption(
            help="What becomes of boxes without an area, and of those that stick out of their image by more than a "
            "pixel. clip: they are cut to the image, and left out where no area remains. drop: they are left out. "
            "refuse: they are errors.",
            default="clip",
            choices=("clip", "drop", "refuse"),
        )
    }

    def read(self, file: DataFile) -> Mapping[str, pa.Table]:
        """Reads a zip of COCO, Pascal VOC or YOLO, which may name parts and classes."""
        from luthier_object_detection import files

        return files.read(file)

    def split(self, examples: pa.Table, split: Split) -> dict[str, pa.Table]:
        """Divides by a hash of the image alone, so that an image never occurs in two parts."""
        from luthier import tabular

        return tabular.split_by_hash(examples, split, key=("image",))

    def validate(self, parts: Mapping[str, pa.Table]) -> Iterable[tuple[bool, DataProblem]]:
        """Looks for data without objects, classes that cannot be learnt or scored, and images that leak."""
        from luthier_object_detection import data

        return data.problems(parts)

    def describe(self, parts: Mapping[str, pa.Table]) -> dict[str, Any]:
        """Counts objects by class, and measures images and boxes."""
        from luthier_object_detection import data

        return data.statistics(parts)

    def trainer(self) -> Trainer:
        """PyTorch, torchvision and timm."""
        from luthier_object_detection import training

        return training

    def open(self, directory: Path) -> Codec:
        """The labels and the size of the input of a bundle."""
        from luthier_object_detection.codec import ObjectDetectionCodec

        return ObjectDetectionCodec(directory)

    def instances(self, examples: pa.Table) -> list[Message]:
        """The images, asked down to low scores."""
        return [
            pb.Instance(image=image, score_threshold=EVALUATION_THRESHOLD) for image in examples["image"].to_pylist()
        ]

    def render(self, instance: Any, prediction: Any) -> Picture:
        """The image with boxes, classes and scores.

        The doubtful detections that an evaluation asks for would cover the image, and are left out.
        """
        from luthier_object_detection import picture

        evaluated = instance.HasField("score_threshold") and instance.score_threshold <= EVALUATION_THRESHOLD
        return picture.draw(instance.image, prediction, prediction.score_threshold if evaluated else 0.0)

    def score(self, examples: pa.Table, predictions: Sequence[Any]) -> Evaluation:
        """COCO's average precision and recall: over IoU thresholds, at 0.5 and 0.75, by size and by class."""
        from luthier_object_detection import metrics

        return metrics.score(examples["objects"].to_pylist(), predictions)

    def features(self, instance: Any, prediction: Any) -> dict[str, float | str]:
        """What the image looks like, and the objects that reach the model's own threshold: how many, of which classes,
        how sure, and how much of the image the largest of them covers.

        A request with a higher threshold, or for fewer objects, says nothing of objects.
        """
        found: dict[str, float | str] = {}
        if instance is not None:
            found.update(facts.of_image(instance.image))
            if instance.score_threshold > prediction.score_threshold or 0 < instance.max_detections < MOST_COUNTED:
                return found
        sure = [one for one in prediction.detections if one.score >= prediction.score_threshold][:MOST_COUNTED]
        found["objects"] = float(len(sure))
        if sure:
            area = max(prediction.image_width * prediction.image_height, 1)
            boxes = [one.box for one in sure]
            found["classes"] = "+".join(sorted({one.label for one in sure}))
            found["score"] = sum(one.score for one in sure) / len(sure)
            found["largest"] = max((box.x_max - box.x_min) * (box.y_max - box.y_min) for box in boxes) / area
        return found

    def grades(self, examples: pa.Table, predictions: Sequence[Any]) -> list[float]:
        """The mean average precision of each image; of one without objects, how far from certain the best find is."""
        from luthier_object_detection import metrics

        return metrics.grades(examples["objects"].to_pylist(), predictions)


@hookimpl
def luthier_tasks() -> list[Task]:
    """Brings the task."""
    return [ObjectDetection()]
