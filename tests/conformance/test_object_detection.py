import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import tiny_timm
from luthier import images
from luthier.tasks.object_detection.v1 import object_detection_pb2 as pb
from luthier.testing import TaskConformance
from luthier_object_detection import ObjectDetection
from luthier_object_detection.files import SCHEMA

COLOURS = {"red": (220, 40, 40), "blue": (40, 40, 220)}


def scene(random: np.random.Generator) -> dict[str, Any]:
    """Up to three squares of two colours on noise, in an image whose size differs from one to the next."""
    height, width = random.integers(60, 100, 2)
    image = random.integers(100, 156, (height, width, 3)).astype(np.uint8)
    objects = []
    for _ in range(random.integers(0, 4)):
        label = str(random.choice(list(COLOURS)))
        side = int(random.integers(20, 36))
        x, y = int(random.integers(0, width - side)), int(random.integers(0, height - side))
        image[y : y + side, x : x + side] = COLOURS[label]
        crowd = bool(random.random() < 0.05)
        objects.append({"label": label, "x_min": x, "y_min": y, "x_max": x + side, "y_max": y + side, "crowd": crowd})
    return {"image": images.encode_png(image), "objects": objects}


def scenes(seed: int, count: int) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.Table.from_pylist([{**scene(random), "name": f"{i}.png"} for i in range(count)], SCHEMA)


BLANK = images.encode_png(np.full((33, 47, 3), 255, dtype=np.uint8))
ONE_PIXEL = images.encode_png(np.zeros((1, 1), dtype=np.uint8))
LONG = images.encode_png(np.zeros((3, 2000, 3), dtype=np.uint8))
NOTHING = pb.Instance(image=BLANK, score_threshold=1)


TIE = 1e-5
"""Scores that are no farther apart may change places between two runtimes."""


class Detection(TaskConformance):
    task = ObjectDetection()
    loss = "validation/loss"
    """The training loss is reported by the clock, five times a second, and so rarely in a run as short as this."""
    invalid_instances = (
        (pb.Instance(image=BLANK, score_threshold=1.5), "score_threshold"),
        (pb.Instance(image=BLANK, score_threshold=float("nan")), "score_threshold"),
        (pb.Instance(image=BLANK, max_detections=-1), "max_detections"),
        (pb.Instance(), "image"),
        (pb.Instance(image=b"GIF89a and no more"), "image"),
        (pb.Instance(image=BLANK[: len(BLANK) // 2]), "image"),
    )
    edge_cases = (
        pb.Instance(image=BLANK),
        pb.Instance(image=ONE_PIXEL),
        pb.Instance(image=LONG, max_detections=2),
        NOTHING,
    )
    tolerance = 1e-3
    """Boxes are in pixels."""
    plugin = "luthier_object_detection"

    @classmethod
    def parts(cls) -> Mapping[str, pa.Table]:
        return {"train": scenes(1, 48), "validation": scenes(2, 12), "test": scenes(3, 12)}

    @classmethod
    def comparable(cls, prediction: Any) -> pb.Prediction:
        """Detections whose scores tie, by their places."""
        ties, last = 0, 1.0
        keys = []
        for found in prediction.detections:
            ties += last - found.score > TIE
            last = found.score
            keys.append((ties, found.label, round(found.box.x_min, 1), round(found.box.y_min, 1)))
        ordered = sorted(zip(keys, prediction.detections, strict=True), key=lambda pair: pair[0])
        arranged = pb.Prediction()
        arranged.CopyFrom(prediction)
        del arranged.detections[:]
        arranged.detections.extend(found for _, found in ordered)
        return arranged

    def test_nothing_is_found_where_nothing_is_certain_enough(self, predictor: Any) -> None:
        (prediction,) = predictor.predict([NOTHING])
        assert not prediction.detections
        assert (prediction.image_width, prediction.image_height) == (47, 33)


class TestFcosOnTimm(Detection):
    config = pb.Config(
        epochs=9, batch_size=4, learning_rate=0.005, head_learning_rate=0.005, image_size=64, freeze_early=False
    )
    trivial_score = 0.04
    """Untuned, it is 0.00."""

    @classmethod
    def base(cls, directory: Path) -> Path:
        return tiny_timm.write(directory)


class TestSsdlite(Detection):
    config = pb.Config(epochs=4, batch_size=8, learning_rate=0.0005, head_learning_rate=0.0005, image_size=96)

    @classmethod
    def base(cls, directory: Path) -> Path:
        return ssdlite(directory)


def ssdlite(directory: Path) -> Path:
    """torchvision's detector under its names for the weights, which are random but for what normalisation has seen."""
    import torch
    from safetensors.torch import save_model
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    for layer in detector.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        detector.head(list(detector.backbone(torch.randn(8, 3, 96, 96)).values()))
    save_model(detector, str(directory / "model.safetensors"))
    description = {
        "id": "ssdlite",
        "library": "torchvision",
        "architecture": "ssdlite320_mobilenet_v3_large",
        "weights": "model.safetensors",
        "input_size": [320, 320],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": 91,
    }
    (directory / "base.json").write_text(json.dumps(description), encoding="utf-8")
    return directory
