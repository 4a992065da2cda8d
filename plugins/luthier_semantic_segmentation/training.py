"""Fine-tunes a segmenter: the loss is the cross entropy of each pixel, the recipe AdamW along half a cosine.

Images and masks are decoded and resized once; each step sees random views of them. Read `fine_tune` from the top. With
the same seed, number of threads and machine, the weights come out the same bit by bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import Dim
from torch.nn import functional

from luthier import images
from luthier.errors import InvalidArgument
from luthier.tasks.semantic_segmentation.v1 import semantic_segmentation_pb2 as pb
from luthier.toolkit.backbones import read_base
from luthier.toolkit.devices import device_of
from luthier.toolkit.export import check_onnx, export_onnx
from luthier.toolkit.loop import Beat, Recipe, Validation, fit
from luthier.toolkit.optim import decay_matrices
from luthier.toolkit.precision import wants_bfloat16
from luthier.toolkit.vision import cache_images, shuffled_batches
from luthier_semantic_segmentation import label_maps
from luthier_semantic_segmentation.augment import IGNORED, views
from luthier_semantic_segmentation.codec import LABELS_FILE, PREPROCESSING_FILE
from luthier_semantic_segmentation.data import labels_of
from luthier_semantic_segmentation.networks import Segmenter, build

if TYPE_CHECKING:
    import pyarrow as pa
    from google.protobuf.message import Message

    from luthier.task import Run

EVALUATION_BATCH = 8
LARGEST_SIDE, LEAST_SIDE = 256, 64
"""Of the square with as many pixels as a fitted input."""
MULTIPLE = 32
"""What the sides of an input are multiples of: the strides of backbones."""
CACHE_SCALE = 1.25
"""How much larger than the input images are kept for training, so that what is zoomed in on is not all blurred."""
EXPORT_TOLERANCE = 2e-3
"""The most that a logit of the ONNX file may be away from PyTorch's."""


@dataclass(frozen=True)
class Model:
    """A fine-tuned segmenter, and what it takes to use it."""

    segmenter: Segmenter
    labels: list[str]
    size: tuple[int, int]
    """(height, width) of the input."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.segmenter.normalise.mean.device


@dataclass(frozen=True)
class Part:
    """Images and masks of a part, on disk."""

    pixels: np.ndarray
    """uint8 [images, height, width, 3]."""
    classes: np.ndarray
    """uint8 [images, height, width]: positions among the labels, MAX_CLASSES where a pixel counts for nothing."""


def fine_tune(run: Run) -> Model:
    """Fine-tunes the base on the images of `train`.

    It is validated after each epoch, and the weights of the last one that is not clearly below the best mIoU are kept:
    by more than the standard error of a difference between two of them. Raises InvalidArgument where the base does not
    suit, Cancelled where the operation was cancelled.
    """
    config: pb.Config = run.config
    if run.base is None or run.warm_start:
        why = "name a vision base of the catalogue; a model's version keeps its ONNX graph, not weights to go on from"
        raise InvalidArgument({"base": why})
    device = device_of(run)
    torch.manual_seed(run.seed)
    random = np.random.default_rng(run.seed)

    base = read_base(run.base)
    examples = run.parts["train"]
    labels, size = labels_of(examples), fitted_size(examples, config.image_size)
    segmenter, fresh = build(
        base, run.base, len(labels), size, config.head_channels, pretrained=not config.from_scratch
    )
    segmenter = segmenter.to(device).to(memory_format=torch.channels_last)
    model = Model(segmenter, labels, size)
    kept = (round(size[0] * CACHE_SCALE), round(size[1] * CACHE_SCALE))
    run.report(0, 1, stage="decoding")
    beat = partial(run.report, 0, 1, stage="decoding")
    train = _cached(examples, labels, kept, kept, run.directory / "train", beat)
    validation = _cached(run.parts["validation"], labels, size, kept, run.directory / "validation", beat)
    weights = class_weights(train.classes, len(labels), config.class_balance).to(device)
    fill = segmenter.normalise.mean

    def loss(indices: np.ndarray) -> torch.Tensor:
        # Some layers normalise over the batch alone: of one image they get two views.
        chosen = np.resize(np.sort(indices), max(2, len(indices)))
        pixels, targets = views(
            torch.from_numpy(train.pixels[chosen]).to(device),
            torch.from_numpy(train.classes[chosen]).to(device),
            size,
            fill,
            config.zoom,
            random,
        )
        logits = functional.interpolate(segmenter(pixels).float(), size, mode="bilinear", align_corners=False)
        total = functional.cross_entropy(logits, targets, weights, ignore_index=IGNORED, reduction="sum")
        return total / weights[targets[targets != IGNORED]].sum().clamp(min=1)

    recipe = Recipe(
        epochs=config.epochs,
        batch_size=config.batch_size,
        warmup=config.warmup,
        decay="cosine",
        patience=config.patience,
        bfloat16=wants_bfloat16(config.precision, device),
    )
    new = {id(parameter) for parameter in fresh.parameters()}
    groups = [
        group | {"params": [p for p in group["params"] if (id(p) in new) == is_new], "lr": rate}
        for is_new, rate in ((False, config.learning_rate), (True, config.head_learning_rate))
        for group in decay_matrices(segmenter, rate, config.weight_decay)
    ]
    count = len(train.pixels)
    fit(
        run,
        segmenter,
        groups,
        recipe,
        count,
        lambda: shuffled_batches(count, config.batch_size, random),
        loss,
        (lambda beat: _validate(model, validation, beat)) if len(validation.pixels) else None,
        random,
    )
    return model


@torch.inference_mode()
def predict(model: Model, instances: Sequence[Any]) -> list[Message]:
    """Segments with PyTorch in 32 bits."""
    segmenter = model.segmenter.eval()
    predictions: list[Message] = []
    for start in range(0, len(instances), EVALUATION_BATCH):
        some = instances[start : start + EVALUATION_BATCH]
        decoded = [images.decode(instance.image) for instance in some]
        pixels = torch.from_numpy(np.stack([images.resize(image, *model.size) for image in decoded]))
        for logits, image, instance in zip(segmenter(pixels.to(model.device)), decoded, some, strict=True):
            label_map = _largest(logits, image.shape[:2]).cpu().numpy()
            predictions.append(label_maps.to_prediction(label_map, model.labels, instance.format))
    return predictions


def export(model: Model, directory: Path) -> None:
    """Writes `model.onnx`, `labels.json` and `preprocessing.json`.

    The graph takes `pixels`, uint8 [batch, height, width, 3], and gives `logits`, float32 [batch, classes, rows,
    columns], on a coarser grid. Raises ParityFailed where it does not compute what PyTorch does.
    """
    segmenter = model.segmenter.eval()
    path = export_onnx(segmenter, _random_pixels(model, 2), ["logits"], {0: Dim("batch")}, directory)
    check_onnx(path, segmenter, (_random_pixels(model, batch) for batch in (1, 3)), EXPORT_TOLERANCE)
    height, width = model.size
    preprocessing = json.dumps({"height": height, "width": width}, indent=2)
    (directory / PREPROCESSING_FILE).write_text(preprocessing, encoding="utf-8")
    (directory / LABELS_FILE).write_text(json.dumps(model.labels, ensure_ascii=False, indent=2), encoding="utf-8")


def fitted_size(examples: pa.Table, side: int) -> tuple[int, int]:
    """(height, width) of an input for images: as many pixels as a square of `side`, in the shape of most of them.

    With 0 the side is the median image's, LARGEST_SIDE at most. Where a quarter or more of the images lie the other way
    round it is a square. Both are multiples of MULTIPLE.
    """
    headers = [images.inspect(mask.as_py()) for mask in examples["mask"]]
    widths, heights = (np.array([getattr(header, name) for header in headers]) for name in ("width", "height"))
    if not side:
        side = max(LEAST_SIDE, min(LARGEST_SIDE, round(float(np.median(np.sqrt(widths * heights))))))
    low, middle, high = np.quantile(widths / heights, [0.25, 0.5, 0.75])
    aspect = float(np.clip(middle, 0.5, 2)) if low > 1 or high < 1 else 1.0
    height, width = (
        max(1, round(side * stretch / MULTIPLE)) * MULTIPLE for stretch in (1 / math.sqrt(aspect), math.sqrt(aspect))
    )
    return height, width


def class_weights(classes: np.ndarray, count: int, balance: float) -> torch.Tensor:
    """Weights in the loss, float [count], by each class's share of the pixels to the power of -balance; their mean over
    the pixels is 1.
    """
    pixels = np.maximum(np.bincount(classes.ravel(), minlength=256)[:count], 1)
    shares = pixels / pixels.sum()
    weights = shares**-balance
    return torch.tensor(weights / (weights * shares).sum(), dtype=torch.float32)


def _cached(
    examples: pa.Table, labels: Sequence[str], size: tuple[int, int], mask_size: tuple[int, int], path: Path, beat: Beat
) -> Part:
    """Decodes and resizes a part once, images to `size` and masks to `mask_size`."""
    encoded = (image.as_py() for image in examples["image"])
    pixels = cache_images(encoded, examples.num_rows, size, path.with_suffix(".pixels"), beat)
    shape = (examples.num_rows, *mask_size)
    if not examples.num_rows:
        return Part(pixels, np.zeros(shape, dtype=np.uint8))
    classes = np.lib.format.open_memmap(path.with_suffix(".classes"), mode="w+", dtype=np.uint8, shape=shape)
    for index, mask in enumerate(_class_maps(examples, labels)):
        classes[index] = images.resize_values(mask, *mask_size)
        beat()
    return Part(pixels, classes)


def _class_maps(examples: pa.Table, labels: Sequence[str]) -> Iterator[np.ndarray]:
    """The masks as positions among the labels; other classes, which train lacks, count for nothing."""
    position = {label: i for i, label in enumerate(labels)}
    for mask, values, names in zip(*(examples[name] for name in ("mask", "values", "labels")), strict=True):
        table = np.full(256, label_maps.MAX_CLASSES, dtype=np.uint8)
        table[values.as_py()] = [position.get(name, label_maps.MAX_CLASSES) for name in names.as_py()]
        yield table[images.decode_values(mask.as_py())]


def _validate(model: Model, part: Part, beat: Beat) -> Validation:
    """mIoU, and the standard error of a difference between two of them by the jackknife over the images.

    Of each class are kept, image by image, the pixels where it is right, and where it is in the mask or predicted.
    """
    count = len(model.labels)
    hits, union = (np.zeros((len(part.pixels), count)) for _ in range(2))
    for start in range(0, len(part.pixels), EVALUATION_BATCH):
        some = slice(start, start + EVALUATION_BATCH)
        logits = model.segmenter(torch.from_numpy(part.pixels[some]).to(model.device)).float()
        for index, (one, truth) in enumerate(zip(logits, part.classes[some], strict=True), start):
            predicted = _largest(one, truth.shape).cpu().numpy()[truth != label_maps.MAX_CLASSES]
            true = truth[truth != label_maps.MAX_CLASSES]
            hits[index] = np.bincount(true[true == predicted], minlength=count)
            both = np.bincount(true, minlength=count) + np.bincount(predicted, minlength=count)
            union[index] = both - hits[index]
        beat()
    miou = float(_mean_ratio(hits.sum(axis=0), union.sum(axis=0)))
    metrics = {"validation/miou": miou}
    if len(part.pixels) < 2:
        return Validation(miou, 1.0, metrics)
    without_one = _mean_ratio(hits.sum(axis=0) - hits, union.sum(axis=0) - union)
    error = math.sqrt(2 * (len(part.pixels) - 1) * without_one.var())
    return Validation(miou, error, metrics)


def _mean_ratio(hits: np.ndarray, union: np.ndarray) -> np.ndarray:
    """The mean of the ratios along the last axis, over those classes that occur."""
    occurs = union > 0
    ratios = np.divide(hits, union, out=np.zeros(union.shape), where=occurs)
    mean: np.ndarray = ratios.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)
    return mean


def _largest(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Enlarges logits [classes, rows, columns] class by class; returns the index of the largest, uint8 of a size."""
    best = torch.full(tuple(size), -math.inf, device=logits.device)
    index = torch.zeros(tuple(size), dtype=torch.uint8, device=logits.device)
    for i, plane in enumerate(logits.float()):
        grown = functional.interpolate(plane[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0]
        index[grown > best] = i
        best = torch.maximum(best, grown)
    return index


def _random_pixels(model: Model, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    pixels = torch.randint(256, (batch, *model.size, 3), generator=generator, dtype=torch.uint8)
    return {"pixels": pixels.to(model.device)}
