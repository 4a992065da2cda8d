"""Fine-tunes a detector: a base of torchvision with a new classifier, or FCOS on a backbone of timm.

The recipe is AdamW with a rate for what the base brings and a higher one for what is new, half a cosine, and SSD's
random crops. Read `fine_tune` from the top. With the same seed, number of threads and machine, the weights come out the
same bit by bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import Dim
from torchvision.ops import batched_nms

from luthier import images
from luthier.errors import InvalidArgument
from luthier.tasks.object_detection.v1 import object_detection_pb2 as pb
from luthier.toolkit.backbones import read_base
from luthier.toolkit.devices import device_of
from luthier.toolkit.export import check_onnx, export_onnx
from luthier.toolkit.loop import Beat, Recipe, Validation, fit, share_error
from luthier.toolkit.optim import decay_matrices
from luthier.toolkit.precision import wants_bfloat16
from luthier.toolkit.vision import cache_images, shuffled_batches
from luthier_object_detection import data, metrics
from luthier_object_detection.augmentation import Augmentation
from luthier_object_detection.codec import CANDIDATES, LABELS_FILE, MAX_DETECTIONS, PREPROCESSING_FILE
from luthier_object_detection.creation import create
from luthier_object_detection.detectors import Detector, Target
from luthier_object_detection.files import CORNERS
from luthier_object_detection.resolution import input_size

if TYPE_CHECKING:
    import pyarrow as pa
    from google.protobuf.message import Message

    from luthier.task import Run

EVALUATION_BATCH = 16
VALIDATION_THRESHOLD = 0.02
"""Score of the detections that count in a validation, as in an evaluation."""
IMAGES_SEEN, MIN_EPOCHS, MAX_EPOCHS = 2700, 3, 40
"""How many images a training sees where its config leaves the epochs open, and the bounds of the epochs."""
CACHE_SCALE = 1.25
"""How much larger than the model's input training images are kept, so that crops lose little."""
EXPORT_TOLERANCE = 1e-4
"""The most that a score, or a box as a share of the image's sides, of the ONNX file may be away from PyTorch's."""


@dataclass(frozen=True)
class Model:
    """A fine-tuned detector, and what it takes to use it."""

    detector: Detector
    labels: list[str]
    nms_iou: float
    score_threshold: float = metrics.SCORE_THRESHOLD
    """Of detections where a caller states none."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.detector.anchors.device


@dataclass(frozen=True)
class Examples:
    """A part of a data set, ready to train on."""

    pixels: np.ndarray
    """uint8 [images, height, width, 3]."""
    targets: list[Target]
    """Boxes as shares of the image's sides, crowds left out."""
    sizes: list[tuple[int, int]]
    """(width, height) of the original images."""
    objects: list[list[dict[str, Any]]]
    """As the data have them."""


def fine_tune(run: Run) -> Model:
    """Fine-tunes the base in `run.base` on the images of `train`.

    It is validated after each epoch by the mean average precision, and the weights of the last one that is not clearly
    below the best are kept: by more than the standard error of a difference between two shares of as many objects.
    Where there is no validation part, every epoch is trained and the last weights are kept.
    Raises InvalidArgument where the base does not suit, Cancelled where the operation was cancelled.
    """
    config: pb.Config = run.config
    device = device_of(run)
    torch.manual_seed(run.seed)
    random = np.random.default_rng(run.seed)
    if run.base is None or run.warm_start:
        why = "name a vision model of the catalogue; a model's version keeps its ONNX graph, not weights to go on from"
        raise InvalidArgument({"base": why})

    base = read_base(run.base)
    labels = data.labels_of(run.parts)
    size = input_size(run.parts["train"], config.image_size)
    detector = create(base, run.base, len(labels), size, pretrained=not config.from_scratch, freeze=config.freeze_early)
    detector = detector.to(device).to(memory_format=torch.channels_last)
    model = Model(detector, labels, config.nms_iou)

    train = _cache(run, "train", (round(size[0] * CACHE_SCALE), round(size[1] * CACHE_SCALE)), labels)
    validation = _cache(run, "validation", size, labels)
    augment = Augmentation(size, base.mean)

    def loss(indices: np.ndarray) -> torch.Tensor:
        pixels, targets = zip(*(_augmented(train, int(index), augment) for index in indices), strict=True)
        outputs = detector.outputs(torch.stack(pixels).to(device))
        return detector.loss(outputs, [_moved(target, device) for target in targets])

    def validate(beat: Beat) -> Validation:
        return _validate(model, validation, beat)

    recipe = Recipe(
        epochs=config.epochs or fitting_epochs(len(train.targets)),
        batch_size=config.batch_size,
        warmup=config.warmup,
        decay="cosine",
        patience=config.patience,
        bfloat16=wants_bfloat16(config.precision, device),
    )
    brought, fresh = detector.parts()
    groups = [
        *decay_matrices(brought, config.learning_rate, config.weight_decay),
        *decay_matrices(fresh, config.head_learning_rate, config.weight_decay),
    ]
    batches = partial(shuffled_batches, len(train.targets), config.batch_size, random)
    judge = validate if validation.targets else None
    fit(run, detector, groups, recipe, len(train.targets), batches, loss, judge, random)
    model = replace(model, score_threshold=_fitting_threshold(run, model, validation))
    run.figures |= {"image_height": size[0], "image_width": size[1], "score_threshold": model.score_threshold}
    return model


def fitting_epochs(num_examples: int) -> int:
    """So many epochs that about IMAGES_SEEN images are seen."""
    return min(max(round(IMAGES_SEEN / num_examples), MIN_EPOCHS), MAX_EPOCHS)


@torch.inference_mode()
def predict(model: Model, instances: Sequence[Any]) -> list[Message]:
    """Detects with PyTorch in 32 bits and torchvision's non-maximum suppression."""
    model.detector.eval()
    height, width = model.detector.size
    predictions: list[Message] = []
    for start in range(0, len(instances), EVALUATION_BATCH):
        batch = instances[start : start + EVALUATION_BATCH]
        decoded = [images.decode(instance.image) for instance in batch]
        pixels = np.stack([images.resize(image, height, width) for image in decoded])
        scores, boxes = model.detector(torch.from_numpy(pixels).to(model.device))
        predictions += [
            _detections(
                model,
                scores[i],
                boxes[i],
                decoded[i].shape[1::-1],
                threshold=instance.score_threshold if instance.HasField("score_threshold") else model.score_threshold,
                most=instance.max_detections or MAX_DETECTIONS,
            )
            for i, instance in enumerate(batch)
        ]
    return predictions


def export(model: Model, directory: Path) -> None:
    """Writes `model.onnx`, `labels.json` and `preprocessing.json`.

    The graph takes `pixels`, uint8 [batch, height, width, 3], and gives `scores`, float32 [batch, places, classes], and
    `boxes`, float32 [batch, places, 4], of a detector in two stages [batch, places, classes, 4]: left, top, right,
    bottom as shares of the image's sides. Which of them are objects, the codec finds out.

    Raises ParityFailed where it does not compute what PyTorch does.
    """
    detector = model.detector.eval()
    height, width = detector.size

    def noise(batch: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(batch)
        pixels = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
        return {"pixels": pixels.to(model.device)}

    path = export_onnx(detector, noise(2), ["scores", "boxes"], {0: Dim("batch")}, directory)
    check_onnx(path, detector, map(noise, (1, 3)), EXPORT_TOLERANCE, detector.comparable)
    preprocessing = {
        "height": height,
        "width": width,
        "nms_iou": model.nms_iou,
        "score_threshold": model.score_threshold,
    }
    (directory / PREPROCESSING_FILE).write_text(json.dumps(preprocessing, indent=2), encoding="utf-8")
    (directory / LABELS_FILE).write_text(json.dumps(model.labels, ensure_ascii=False, indent=2), encoding="utf-8")


def _cache(run: Run, part: str, size: tuple[int, int], labels: list[str]) -> Examples:
    """The images of a part, decoded and resized once, and their objects."""
    table: pa.Table = run.parts[part]
    encoded = table["image"].to_pylist()
    done = 0

    def beat() -> None:
        nonlocal done
        done += 1
        if not done % 32 or done == len(encoded):
            run.report(done, len(encoded), stage=f"preparing {part}", examples=done)

    headers = [images.inspect(image) for image in encoded]
    sizes = [(header.width, header.height) for header in headers]
    objects = table["objects"].to_pylist()
    targets = [_target(listed, size, labels) for listed, size in zip(objects, sizes, strict=True)]
    pixels = cache_images(encoded, len(encoded), size, run.directory / f"{part}.npy", beat)
    return Examples(pixels, targets, sizes, objects)


def _target(objects: list[dict[str, Any]], size: tuple[int, int], labels: list[str]) -> Target:
    """What is to be learnt of an image; classes that train lacks are not."""
    learnt = [entry for entry in objects if not entry["crowd"] and entry["label"] in labels]
    boxes = torch.tensor([[entry[corner] for corner in CORNERS] for entry in learnt]).float().reshape(-1, 4)
    numbers = torch.tensor([labels.index(entry["label"]) for entry in learnt], dtype=torch.int64)
    return {"boxes": boxes / torch.tensor(size * 2), "labels": numbers}


def _augmented(examples: Examples, index: int, augment: Augmentation) -> tuple[torch.Tensor, Target]:
    """An input, and its target in pixels."""
    image, target = torch.from_numpy(examples.pixels[index]), examples.targets[index]
    height, width = image.shape[:2]
    return augment(image, target["boxes"] * torch.tensor([width, height] * 2), target["labels"])


def _validate(model: Model, examples: Examples, beat: Beat) -> Validation:
    """The mean average precision, as `metrics.score` has it, and the mean loss."""
    results, loss = _results(model, examples, beat)
    # Below 0 there was no object to find.
    precision, precision_50 = max(0.0, results.mean_precision()), max(0.0, results.mean_precision(iou=0))
    count = _num_objects(examples)
    error = share_error(precision, count) if count else math.inf
    measured = {"validation/map": precision, "validation/map_50": precision_50, "validation/loss": loss}
    return Validation(precision, error, measured)


@torch.inference_mode()
def _fitting_threshold(run: Run, model: Model, examples: Examples) -> float:
    """The score threshold that does best on examples, which may be none."""
    done = 0

    def beat() -> None:
        nonlocal done
        done = min(done + EVALUATION_BATCH, len(examples.targets))
        run.report(done, len(examples.targets), stage="choosing a score threshold", examples=done)

    results, _ = _results(model, examples, beat)
    return metrics.best_threshold(results, _num_objects(examples))


def _num_objects(examples: Examples) -> int:
    return sum(not entry["crowd"] for objects in examples.objects for entry in objects)


def _results(model: Model, examples: Examples, beat: Beat) -> tuple[metrics.Results, float]:
    """What COCO's evaluation finds of examples, and the mean loss."""
    predictions: list[pb.Prediction] = []
    loss = 0.0
    scale = model.detector.scale.cpu()
    for start in range(0, len(examples.targets), EVALUATION_BATCH):
        batch = slice(start, start + EVALUATION_BATCH)
        outputs = model.detector.outputs(torch.from_numpy(np.array(examples.pixels[batch])).to(model.device))
        targets = [{**target, "boxes": target["boxes"] * scale} for target in examples.targets[batch]]
        loss += model.detector.loss(outputs, [_moved(t, model.device) for t in targets]).item() * len(targets)
        predictions += [
            _detections(model, scores, boxes, size, threshold=VALIDATION_THRESHOLD, most=MAX_DETECTIONS)
            for scores, boxes, size in zip(*model.detector.decode(outputs), examples.sizes[batch], strict=True)
        ]
        beat()
    return metrics.measure(examples.objects, predictions), loss / max(1, len(examples.targets))


def _moved(target: Target, device: torch.device) -> Target:
    return {name: value.to(device) for name, value in target.items()}


def _detections(
    model: Model, scores: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], *, threshold: float, most: int
) -> pb.Prediction:
    """What is in an image of `size`, (width, height), by scores [places, classes] and boxes as shares.

    Boxes are [places, 4], or [places, classes, 4].
    """
    scores, boxes = scores.float().cpu(), boxes.float().cpu()
    places, classes = torch.where(scores >= threshold)
    values, order = scores[places, classes].sort(descending=True, stable=True)
    places, classes, values = places[order[:CANDIDATES]], classes[order[:CANDIDATES]], values[:CANDIDATES]
    found = boxes[places] if boxes.ndim == 2 else boxes[places, classes]
    kept = batched_nms(found, values, classes, model.nms_iou)[:most]
    corners = found[kept] * torch.tensor(size * 2)
    return pb.Prediction(
        detections=[
            pb.Detection(label=model.labels[c], score=s, box=pb.Box(x_min=x0, y_min=y0, x_max=x1, y_max=y1))
            for c, s, (x0, y0, x1, y1) in zip(
                classes[kept].tolist(), values[kept].tolist(), corners.tolist(), strict=True
            )
        ],
        image_width=size[0],
        image_height=size[1],
        score_threshold=model.score_threshold,
    )
