"""The two ends of a served classifier: images to pixels, probabilities to classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier import images
from luthier.task import Codec, InvalidArgument
from luthier.tasks.image_classification.v1 import image_classification_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

LABELS_FILE = "labels.json"
PREPROCESSING_FILE = "preprocessing.json"


class ImageClassificationCodec(Codec):
    """Reads `labels.json` and `preprocessing.json` of a bundle."""

    max_rows = 32
    """Larger batches are no faster, and a thousand images at once would take gigabytes."""

    def __init__(self, directory: Path) -> None:
        self._labels: list[str] = json.loads((directory / LABELS_FILE).read_text(encoding="utf-8"))
        preprocessing = json.loads((directory / PREPROCESSING_FILE).read_text(encoding="utf-8"))
        self._size = (preprocessing["height"], preprocessing["width"])

    def encode(self, instances: Sequence[Any]) -> dict[str, np.ndarray]:
        """Returns `images`, uint8 [batch, height, width, 3]: each decoded and, whole, resized to the model's input."""
        pixels = np.empty((len(instances), *self._size, 3), dtype=np.uint8)
        violations = {}
        for i, instance in enumerate(instances):
            if instance.top_k < 0:
                violations[f"instances[{i}].top_k"] = f"{instance.top_k} is below 0"
            try:
                pixels[i] = images.decode_to(instance.image, *self._size)
            except images.ImageError as error:
                violations[f"instances[{i}].image"] = str(error)
        if violations:
            raise InvalidArgument(violations)
        return {"images": pixels}

    def decode(self, outputs: Mapping[str, np.ndarray], instances: Sequence[Any]) -> list[Message]:
        """Reads `probabilities`, float32 [batch, classes]; more classes than there are cannot be had."""
        return [
            self._prediction(row, instance.top_k or 1)
            for row, instance in zip(outputs["probabilities"], instances, strict=True)
        ]

    def _prediction(self, probabilities: np.ndarray, count: int) -> pb.Prediction:
        best = np.argsort(-probabilities, kind="stable")[:count]
        top = [pb.ClassScore(label=self._labels[i], score=probabilities[i]) for i in best]
        return pb.Prediction(label=top[0].label, score=top[0].score, top=top)
