"""The two ends of a served segmenter: images to pixels, logits to masks of the images' own sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier import images
from luthier.task import Codec, InvalidArgument
from luthier.tasks.semantic_segmentation.v1 import semantic_segmentation_pb2 as pb
from luthier_semantic_segmentation.label_maps import classes_at, to_prediction

if TYPE_CHECKING:
    from google.protobuf.message import Message

LABELS_FILE = "labels.json"
PREPROCESSING_FILE = "preprocessing.json"


class SemanticSegmentationCodec(Codec):
    """Reads `labels.json` and `preprocessing.json` of a bundle."""

    max_rows = 8
    """Convolutions gain nothing from larger batches, and their maps would take a gigabyte at 64 images."""

    def __init__(self, directory: Path) -> None:
        self._labels: list[str] = json.loads((directory / LABELS_FILE).read_text(encoding="utf-8"))
        preprocessing = json.loads((directory / PREPROCESSING_FILE).read_text(encoding="utf-8"))
        self._height, self._width = preprocessing["height"], preprocessing["width"]

    def encode(self, instances: Sequence[Any]) -> dict[str, np.ndarray]:
        """Returns `pixels`, uint8 [batch, height, width, 3]."""
        pixels = np.empty((len(instances), self._height, self._width, 3), dtype=np.uint8)
        violations: dict[str, str] = {}
        for i, instance in enumerate(instances):
            if instance.format not in pb.MaskFormat.values():
                violations[f"instances[{i}].format"] = f"{instance.format} is none of {', '.join(pb.MaskFormat.keys())}"
            try:
                pixels[i] = images.decode_to(instance.image, self._height, self._width)
            except images.ImageError as error:
                violations[f"instances[{i}].image"] = str(error)
        if violations:
            raise InvalidArgument(violations)
        return {"pixels": pixels}

    def decode(self, outputs: Mapping[str, np.ndarray], instances: Sequence[Any]) -> list[Message]:
        """Reads `logits`, float32 [batch, classes, rows, columns]: each pixel gets the class that is largest there."""
        predictions: list[Message] = []
        for logits, instance in zip(outputs["logits"], instances, strict=True):
            header = images.inspect(instance.image)
            label_map = classes_at(logits, header.height, header.width)
            predictions.append(to_prediction(label_map, self._labels, instance.format))
        return predictions
