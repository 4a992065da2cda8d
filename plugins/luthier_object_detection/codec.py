"""The two ends of a served detector: images to one size, scores and boxes of all places to the objects that are there.

Images are stretched to the size of the model's input, whatever their own, and boxes are shares of its sides: what comes
back is in pixels of the image as it was sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier import images
from luthier.task import Codec, InvalidArgument
from luthier.tasks.object_detection.v1 import object_detection_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

LABELS_FILE = "labels.json"
PREPROCESSING_FILE = "preprocessing.json"
MAX_DETECTIONS = 100
CANDIDATES = 1000
"""Boxes of the highest scores that are looked at closer, of all classes together."""


class ObjectDetectionCodec(Codec):
    """Reads `labels.json` and `preprocessing.json` of a bundle."""

    def __init__(self, directory: Path) -> None:
        self._labels: list[str] = json.loads((directory / LABELS_FILE).read_text(encoding="utf-8"))
        preprocessing = json.loads((directory / PREPROCESSING_FILE).read_text(encoding="utf-8"))
        self._height, self._width = preprocessing["height"], preprocessing["width"]
        self._nms_iou, self._score_threshold = preprocessing["nms_iou"], preprocessing["score_threshold"]

    def encode(self, instances: Sequence[Any]) -> dict[str, np.ndarray]:
        """Returns `pixels`, uint8 [batch, height, width, 3]."""
        pixels = np.zeros((len(instances), self._height, self._width, 3), dtype=np.uint8)
        violations: dict[str, str] = {}
        for i, instance in enumerate(instances):
            if instance.HasField("score_threshold") and not 0 <= instance.score_threshold <= 1:
                violations[f"instances[{i}].score_threshold"] = f"{instance.score_threshold} is not between 0 and 1"
            if instance.max_detections < 0:
                violations[f"instances[{i}].max_detections"] = f"{instance.max_detections} is below 0"
            try:
                pixels[i] = images.decode_to(instance.image, self._height, self._width)
            except images.ImageError as error:
                violations[f"instances[{i}].image"] = str(error)
        if violations:
            raise InvalidArgument(violations)
        return {"pixels": pixels}

    def decode(self, outputs: Mapping[str, np.ndarray], instances: Sequence[Any]) -> list[Message]:
        """Reads `scores`, float32 [batch, places, classes], and `boxes`, float32, as shares of the image's sides.

        A box is either of a place, [batch, places, 4], or of a class at a place, [batch, places, classes, 4].
        """
        return [
            self._prediction(scores, boxes, instance)
            for scores, boxes, instance in zip(outputs["scores"], outputs["boxes"], instances, strict=True)
        ]

    def _prediction(self, scores: np.ndarray, boxes: np.ndarray, instance: Any) -> pb.Prediction:
        threshold = instance.score_threshold if instance.HasField("score_threshold") else self._score_threshold
        places, classes = np.nonzero(scores >= threshold)
        values = scores[places, classes]
        order = np.argsort(-values, kind="stable")[:CANDIDATES]
        places, classes, values = places[order], classes[order], values[order]
        found = boxes[places] if boxes.ndim == 2 else boxes[places, classes]
        kept = suppress(found, classes, self._nms_iou, instance.max_detections or MAX_DETECTIONS)
        header = images.inspect(instance.image)
        sides = np.array([header.width, header.height] * 2, dtype=np.float32)
        return pb.Prediction(
            detections=[
                pb.Detection(label=self._labels[classes[i]], score=values[i], box=_box(found[i] * sides)) for i in kept
            ],
            image_width=header.width,
            image_height=header.height,
            score_threshold=self._score_threshold,
        )


def suppress(boxes: np.ndarray, classes: np.ndarray, iou: float, most: int) -> list[int]:
    """Non-maximum suppression within each class: indices of the boxes that are kept, at most `most`.

    `boxes`, float32 [n, 4], and `classes`, integers [n], come with the highest scores first. A box is dropped where its
    intersection over union with one that is kept, of its class, is above `iou`.
    """
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    areas = (right - left) * (bottom - top)
    alive = np.ones(len(boxes), dtype=bool)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        if len(kept) == most:
            break
        kept.append(i)
        rest = slice(i + 1, None)
        width = np.minimum(right[i], right[rest]) - np.maximum(left[i], left[rest])
        height = np.minimum(bottom[i], bottom[rest]) - np.maximum(top[i], top[rest])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        # Without an area there is no overlap to speak of, and no division by 0.
        is_apart = shared <= iou * (areas[i] + areas[rest] - shared)
        alive[rest] &= is_apart | (classes[rest] != classes[i])
    return kept


def _box(corners: np.ndarray) -> pb.Box:
    x_min, y_min, x_max, y_max = corners.tolist()
    return pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)
