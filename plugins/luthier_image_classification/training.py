"""Fine-tunes a timm backbone with a linear head on its pooled features.

The recipe is AdamW with a rate for the backbone and a higher one for the new head, a short warm-up and half a cosine,
label smoothing, and random crops, mirrors and colours. Read `fine_tune` from the top. With the same seed, number of
threads and machine, the weights come out the same bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

from luthier import images
from luthier.errors import InvalidArgument
from luthier.tasks.image_classification.v1 import image_classification_pb2 as pb
from luthier.toolkit.backbones import Base, create_backbone, read_base
from luthier.toolkit.devices import device_of
from luthier.toolkit.export import check_onnx, export_onnx
from luthier.toolkit.loop import Beat, Recipe, Validation, fit, share_error
from luthier.toolkit.optim import decay_matrices
from luthier.toolkit.precision import wants_bfloat16
from luthier.toolkit.vision import Normalise, cache_images, input_size, shuffled_batches
from luthier_image_classification.augmentation import Augmentation
from luthier_image_classification.codec import LABELS_FILE, PREPROCESSING_FILE
from luthier_image_classification.resolution import fitting_side

if TYPE_CHECKING:
    import pyarrow as pa
    from google.protobuf.message import Message

    from luthier.task import Run

EVALUATION_BATCH = 32
IMAGES_SEEN, MIN_EPOCHS, MAX_EPOCHS = 3000, 4, 25
"""How many images a training sees where its config leaves the epochs open, and the bounds of the epochs."""
BATCH_NORM_RATE, LAYER_NORM_RATE = 7e-4, 1e-4
"""Learning rates where the config leaves them open: of convolutional networks as of MobileNet and ResNet, and of
transformers and ConvNeXt, which their authors fine-tune with 5e-5 (Liu et al. 2022) to 1e-4."""
CACHE_SCALE = 1.15
"""How much larger than the model's input training images are kept, so that crops lose little."""
EXPORT_TOLERANCE = 1e-4
"""The most that a probability of the ONNX file may be away from PyTorch's."""


class Classifier(nn.Module):
    """Normalisation, a backbone and a head: uint8 images [batch, height, width, 3] to logits [batch, classes]."""

    def __init__(self, base: Base, backbone: Any, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.normalise = Normalise(base.mean, base.std)
        self.backbone: Any = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.head_hidden_size, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.dropout(self.backbone(self.normalise(images))))
        return logits


class Probabilities(nn.Module):
    """What is exported: a classifier with its softmax."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities [batch, classes]."""
        probabilities: torch.Tensor = self.classifier(images).softmax(-1)
        return probabilities


@dataclass(frozen=True)
class Model:
    """A fine-tuned classifier, and what it takes to use it."""

    classifier: Classifier
    labels: list[str]
    size: tuple[int, int]
    """(height, width) of the images that it sees."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.classifier.head.weight.device


def fine_tune(run: Run) -> Model:
    """Fine-tunes the backbone in `run.base` on the images of `train`.

    It is validated after each epoch, and the weights of the last one that is not clearly below the best accuracy are
    kept: by more than the standard error of a difference between two shares of as many examples. Where
    there is no validation part, every epoch is trained and the last weights are kept.
    Raises InvalidArgument where the base does not suit, Cancelled where the operation was cancelled.
    """
    config: pb.Config = run.config
    device = device_of(run)
    torch.manual_seed(run.seed)
    random = np.random.default_rng(run.seed)
    if run.base is None or run.warm_start:
        why = "name a vision model of the catalogue; a model's version keeps its ONNX graph, not weights to go on from"
        raise InvalidArgument({"base": why})

    base = read_base(run.base, ("timm",))
    train = run.parts["train"]
    size = _size(base, config.image_size, train)
    backbone: Any = create_backbone(
        base, run.base, pretrained=not config.from_scratch, num_classes=0, **_size_arguments(base, size)
    )
    labels = sorted(set(train["label"].to_pylist()))
    classifier = Classifier(base, backbone, len(labels), config.dropout)
    classifier = classifier.to(device).to(memory_format=torch.channels_last)
    model = Model(classifier, labels, size)

    larger = (round(size[0] * CACHE_SCALE), round(size[1] * CACHE_SCALE))
    pixels, targets = _cache(run, "train", larger, labels)
    validation, validation_targets = _cache(run, "validation", size, labels)
    augment = Augmentation(size, config.min_crop, flip=config.flip, colour_jitter=config.colour_jitter)

    def loss(indices: np.ndarray) -> torch.Tensor:
        logits = classifier(augment(torch.from_numpy(pixels[indices]).to(device)))
        return functional.cross_entropy(
            logits.float(), targets[indices].to(device), label_smoothing=config.label_smoothing
        )

    def validate(beat: Beat) -> Validation:
        return _validate(model, validation, validation_targets, beat)

    recipe = Recipe(
        epochs=config.epochs or fitting_epochs(len(targets)),
        batch_size=config.batch_size,
        warmup=config.warmup,
        decay="cosine",
        patience=config.patience,
        bfloat16=wants_bfloat16(config.precision, device),
    )
    groups = [
        *decay_matrices(backbone, config.learning_rate or fitting_rate(backbone), config.weight_decay),
        *decay_matrices(classifier.head, config.head_learning_rate, config.weight_decay),
    ]
    batches = partial(shuffled_batches, len(targets), config.batch_size, random)
    judge = validate if len(validation_targets) else None
    fit(run, classifier, groups, recipe, len(targets), batches, loss, judge, random)
    run.figures["image_size"] = size[0]
    return model


def fitting_epochs(num_examples: int) -> int:
    """Epochs in which a training sees about IMAGES_SEEN images, within the bounds."""
    return min(MAX_EPOCHS, max(MIN_EPOCHS, round(IMAGES_SEEN / num_examples)))


def fitting_rate(backbone: nn.Module) -> float:
    """The learning rate that a backbone stands: less where it has no batch normalisation to keep its scale."""
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    return BATCH_NORM_RATE if normalised else LAYER_NORM_RATE


def predict(model: Model, instances: Sequence[Any]) -> list[Message]:
    """Classifies with PyTorch in 32 bits."""
    classifier = model.classifier.eval()
    predictions: list[Message] = []
    for start in range(0, len(instances), EVALUATION_BATCH):
        batch = instances[start : start + EVALUATION_BATCH]
        pixels = np.stack([images.decode_to(instance.image, *model.size) for instance in batch])
        with torch.inference_mode():
            probabilities = classifier(torch.from_numpy(pixels).to(model.device)).softmax(-1).cpu()
        for instance, row in zip(batch, probabilities, strict=True):
            scores, classes = row.topk(min(instance.top_k or 1, len(model.labels)))
            top = [
                pb.ClassScore(label=model.labels[c], score=s)
                for s, c in zip(scores.tolist(), classes.tolist(), strict=True)
            ]
            predictions.append(pb.Prediction(label=top[0].label, score=top[0].score, top=top))
    return predictions


def export(model: Model, directory: Path) -> None:
    """Writes `model.onnx`, `labels.json` and `preprocessing.json`.

    The graph takes `images`, uint8 [batch, height, width, 3], and gives `probabilities`, float32 [batch, classes].
    Raises ParityFailed where it does not compute what PyTorch does.
    """
    module = Probabilities(model.classifier).eval()
    path = export_onnx(module, _random_inputs(model, 2), ["probabilities"], {0: Dim("batch")}, directory)
    check_onnx(path, module, (_random_inputs(model, batch) for batch in (1, 2, 7)), EXPORT_TOLERANCE)

    height, width = model.size
    preprocessing = {"height": height, "width": width}
    (directory / PREPROCESSING_FILE).write_text(json.dumps(preprocessing, indent=2), encoding="utf-8")
    (directory / LABELS_FILE).write_text(json.dumps(model.labels, ensure_ascii=False, indent=2), encoding="utf-8")


def _size(base: Base, configured: int, train: pa.Table) -> tuple[int, int]:
    """(height, width) of the model's input."""
    if not configured:
        configured = fitting_side(train["image"], min(base.input_size))
    return input_size(configured, base.input_size)


def _size_arguments(base: Base, size: tuple[int, int]) -> dict[str, Any]:
    """What timm has to be told of the input: transformers are made for one size, and fit their positions to it."""
    described = timm.get_pretrained_cfg(base.architecture)
    return {"img_size": size} if described is not None and described.fixed_input_size else {}


def _cache(run: Run, part: str, size: tuple[int, int], labels: Sequence[str]) -> tuple[np.ndarray, torch.Tensor]:
    """A part's images, uint8 [images, height, width, 3], and the positions of their labels: int64 [images]."""
    table = run.parts[part]
    position = {label: i for i, label in enumerate(labels)}
    targets = torch.tensor([position[label] for label in table["label"].to_pylist()], dtype=torch.int64)
    done = 0

    def beat() -> None:
        nonlocal done
        done += 1
        if not done % 32 or done == len(targets):
            run.report(done, len(targets), stage=f"preparing {part}", examples=done)

    encoded = (scalar.as_py() for scalar in table["image"])
    return cache_images(encoded, len(targets), size, run.directory / f"{part}.npy", beat), targets


def _validate(model: Model, pixels: np.ndarray, targets: torch.Tensor, beat: Beat) -> Validation:
    """Accuracy and mean loss."""
    correct, loss = 0, 0.0
    for start in range(0, len(targets), EVALUATION_BATCH):
        batch, expected = pixels[start : start + EVALUATION_BATCH], targets[start : start + EVALUATION_BATCH]
        logits = model.classifier(torch.from_numpy(np.array(batch)).to(model.device)).float().cpu()
        correct += int((logits.argmax(-1) == expected).sum())
        loss += functional.cross_entropy(logits, expected, reduction="sum").item()
        beat()
    accuracy = correct / len(targets)
    metrics = {"validation/accuracy": accuracy, "validation/loss": loss / len(targets)}
    return Validation(accuracy, share_error(accuracy, len(targets)), metrics)


def _random_inputs(model: Model, batch: int) -> dict[str, torch.Tensor]:
    """Images without meaning."""
    generator = torch.Generator().manual_seed(batch)
    pixels = torch.randint(256, (batch, *model.size, 3), generator=generator, dtype=torch.uint8)
    return {"images": pixels.to(model.device)}
