"""Fine-tunes an encoder with a linear head: the mean of the tokens' last hidden states, dropout, one matrix.

The recipe is AdamW with a rate for the encoder and a ten times higher one for the new head, linear warm-up and decay,
and gradients clipped to norm 1. Read `fine_tune` from the top. With the same seed, number of threads and machine, the
weights come out the same bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

from luthier.errors import InvalidArgument
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb
from luthier.toolkit.batches import in_order_of_length, length_buckets
from luthier.toolkit.devices import device_of
from luthier.toolkit.export import check_onnx, export_onnx
from luthier.toolkit.loop import Beat, Recipe, Validation, fit, share_error
from luthier.toolkit.optim import decay_matrices
from luthier.toolkit.precision import wants_bfloat16
from luthier.toolkit.text import (
    Tokens,
    carry_over,
    earlier_head,
    load_encoder,
    random_inputs,
    save_source,
    spell_out_attention,
)
from luthier_text_classification import data
from luthier_text_classification.codec import LABELS_FILE, PREPROCESSING_FILE, TOKENIZER_FILE

if TYPE_CHECKING:
    import pyarrow as pa
    from google.protobuf.message import Message

    from luthier.task import Run

EVALUATION_BATCH = 64
COSINE_SCALE = 20.0
"""Softmax sharpness over cosines of the untuned base: the scale that sentence-transformers train and compare with."""
EXPORT_TOLERANCE = 1e-4
"""The most that a probability of the ONNX file may be away from PyTorch's."""


class Classifier(nn.Module):
    """An encoder and a head: `input_ids`, `attention_mask` [batch, tokens] to logits [batch, classes]."""

    def __init__(self, encoder: Any, hidden_size: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, num_classes)

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mean of the last hidden states over the tokens that are not padding, not normalised: [batch, hidden]."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        pooled: torch.Tensor = (states * mask).sum(1) / mask.sum(1)
        return pooled

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.dropout(self.embed(input_ids, attention_mask)))
        return logits


class Probabilities(nn.Module):
    """What is exported: a classifier with its softmax, or with a sigmoid where a text may have several labels."""

    def __init__(self, classifier: Classifier, *, several: bool) -> None:
        super().__init__()
        self.classifier = classifier
        self.several = several

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Probabilities [batch, classes]."""
        return _probabilities(self.classifier(input_ids, attention_mask), several=self.several)


@dataclass
class Model:
    """A fine-tuned classifier, and what it takes to use it."""

    classifier: Classifier
    tokenizer: Any
    labels: list[str]
    max_length: int
    several: bool
    """Whether a text may have any number of labels."""
    threshold: float = 0.5
    """The probability from which one is given then."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.classifier.head.weight.device


def fine_tune(run: Run) -> Model:
    """Fine-tunes the encoder in `run.base` on the texts of `train`.

    It is validated after each epoch, and the weights of the last one that is not clearly below the best accuracy are
    kept: by more than the standard error of a difference between two shares of as many examples. Where
    there is no validation part, every epoch is trained and the last weights are kept. With 0 epochs see
    `_untuned_head`.
    An earlier version as the base is trained on: it keeps its classes, with what it knows of them, and admits new ones.
    With several labels each class has a sigmoid of its own, F1 over all pairs of text and label takes the place of
    accuracy, and the threshold becomes the one with the best F1 in the validation.
    Raises InvalidArgument where the base or the length does not suit, Cancelled where the operation was cancelled.
    """
    config: pb.Config = run.config
    device = device_of(run)
    torch.manual_seed(run.seed)
    random = np.random.default_rng(run.seed)

    if run.warm_start and config.epochs == 0:
        raise InvalidArgument({"config.epochs": "must be at least 1 where an earlier version is the base"})
    encoder, tokenizer = load_encoder(run, config.max_length, pretrained=not config.from_scratch)
    earlier = earlier_head(run)
    labels = sorted({label for row in data.labels_of(run.parts["train"]) for label in row} | earlier.keys())
    classifier = Classifier(encoder, encoder.config.hidden_size, len(labels), config.dropout).to(device)
    carry_over(earlier, classifier.head, labels)
    model = Model(classifier, tokenizer, labels, config.max_length, data.several(run.parts["train"]))
    tokens, targets = _tokenise_part(model, run.parts["train"])
    validation, validation_targets = _tokenise_part(model, run.parts["validation"])

    def loss(indices: np.ndarray) -> torch.Tensor:
        logits = classifier(*tokens.batch(indices, device))
        return _loss(logits.float(), targets[indices].to(device), several=model.several)

    def validate(beat: Beat) -> Validation:
        return _validate(model, validation, validation_targets, beat)

    if config.epochs == 0:
        _untuned_head(model, tokens, targets)
    recipe = Recipe(
        epochs=config.epochs,
        batch_size=config.batch_size,
        warmup=config.warmup,
        patience=config.patience,
        bfloat16=wants_bfloat16(config.precision, device),
    )
    groups = [
        *decay_matrices(encoder, config.learning_rate, config.weight_decay),
        *decay_matrices(classifier.head, config.head_learning_rate, config.weight_decay),
    ]
    batches = partial(length_buckets, tokens.lengths, config.batch_size, random)
    judge = validate if len(validation_targets) else None
    fit(run, classifier, groups, recipe, len(targets), batches, loss, judge, random)
    if model.several and len(validation_targets):
        model.threshold = _best_threshold(model, validation, validation_targets)
    return model


def predict(model: Model, instances: Sequence[Any]) -> list[Message]:
    """Classifies with PyTorch in 32 bits and the tokenizer of transformers."""
    classifier = model.classifier.eval()
    tokens = _tokenise(model, [instance.text for instance in instances])
    predictions: list[Message] = [pb.Prediction() for _ in instances]
    for indices in in_order_of_length(tokens.lengths, EVALUATION_BATCH):
        with torch.inference_mode():
            logits = classifier(*tokens.batch(indices, model.device))
            probabilities = _probabilities(logits, several=model.several).cpu()
        for i, row in zip(indices, probabilities, strict=True):
            scores, classes = row.sort(descending=True, stable=True)
            entries = [
                pb.ClassScore(label=model.labels[c], score=s)
                for s, c in zip(scores.tolist(), classes.tolist(), strict=True)
            ]
            top = entries[: instances[i].top_k or 1]
            predictions[i] = pb.Prediction(label=top[0].label, score=top[0].score, top=top)
            if model.several:
                threshold = instances[i].threshold if instances[i].HasField("threshold") else model.threshold
                predictions[i].labels.extend(entry for entry in entries if entry.score >= threshold)
    return predictions


def export(model: Model, directory: Path) -> None:
    """Writes `model.onnx`, `labels.json`, `tokenizer.json`, `preprocessing.json`, and the folder `source`.

    The graph takes `input_ids` and `attention_mask`, int64 [batch, sequence], and gives `probabilities`, float32
    [batch, classes]. Raises ParityFailed where it does not compute what PyTorch does.
    """
    spell_out_attention(model.classifier.encoder)
    module = Probabilities(model.classifier, several=model.several).eval()
    example = random_inputs(model.tokenizer, 2, model.max_length // 2, model.device)
    axes = {0: Dim("batch"), 1: Dim("sequence", max=model.max_length)}
    path = export_onnx(module, example, ["probabilities"], axes, directory)
    others = [(1, model.max_length), (2, model.max_length // 2), (7, 3)]
    batches = (random_inputs(model.tokenizer, batch, length, model.device) for batch, length in others)
    check_onnx(path, module, batches, EXPORT_TOLERANCE)

    model.tokenizer.backend_tokenizer.save(str(directory / TOKENIZER_FILE))
    preprocessing = {
        "max_length": model.max_length,
        "pad_id": model.tokenizer.pad_token_id,
        "pad_token": model.tokenizer.pad_token,
        **({"threshold": model.threshold} if model.several else {}),
    }
    (directory / PREPROCESSING_FILE).write_text(
        json.dumps(preprocessing, ensure_ascii=False, indent=2), encoding="utf-8"
    )
    (directory / LABELS_FILE).write_text(json.dumps(model.labels, ensure_ascii=False, indent=2), encoding="utf-8")
    save_source(directory, model.classifier.encoder, model.tokenizer, model.classifier.head, model.labels)


def _tokenise_part(model: Model, part: pa.Table) -> tuple[Tokens, torch.Tensor]:
    """The texts' tokens, and the positions of their classes among the labels: int64 [texts].

    With several labels the targets are float32 [texts, classes] instead: 1 where a label holds.
    """
    position = {label: i for i, label in enumerate(model.labels)}
    places = [[position[label] for label in row] for row in data.labels_of(part)]
    if model.several:
        targets = torch.zeros(len(places), len(position))
        for i, row in enumerate(places):
            targets[i, row] = 1.0
    else:
        targets = torch.tensor([place for (place,) in places], dtype=torch.int64)
    return _tokenise(model, part["text"].to_pylist()), targets


def _tokenise(model: Model, texts: list[str]) -> Tokens:
    """Tokenises everything once, up front."""
    encoded = model.tokenizer(texts, truncation=True, max_length=model.max_length).input_ids if texts else []
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    return Tokens([torch.tensor(ids) for ids in encoded], lengths, model.tokenizer.pad_token_id)


def _probabilities(logits: torch.Tensor, *, several: bool) -> torch.Tensor:
    return logits.sigmoid() if several else logits.softmax(-1)


def _loss(logits: torch.Tensor, targets: torch.Tensor, *, several: bool) -> torch.Tensor:
    """The mean over the texts of cross-entropy, or over texts and classes of each class's own."""
    if several:
        return functional.binary_cross_entropy_with_logits(logits, targets)
    return functional.cross_entropy(logits, targets)


def _validate(model: Model, tokens: Tokens, targets: torch.Tensor, beat: Beat) -> Validation:
    """Accuracy, or with several labels F1 at probability one half, and mean loss."""
    right, counted, loss = 0, 0, 0.0
    for indices in in_order_of_length(tokens.lengths, EVALUATION_BATCH):
        logits = model.classifier(*tokens.batch(indices, model.device)).float().cpu()
        true = targets[indices]
        if model.several:
            right += 2 * int(((logits > 0) & (true > 0)).sum())
            counted += int((logits > 0).sum()) + int(true.sum())
        else:
            right += int((logits.argmax(-1) == true).sum())
            counted += len(true)
        loss += _loss(logits, true, several=model.several).item() * len(true)
        beat()
    score = right / max(1, counted)
    name = "f1_micro" if model.several else "accuracy"
    metrics = {f"validation/{name}": score, "validation/loss": loss / len(targets)}
    return Validation(score, share_error(score, len(targets)), metrics)


@torch.inference_mode()
def _best_threshold(model: Model, tokens: Tokens, targets: torch.Tensor) -> float:
    """The threshold with the best F1 over all pairs of text and label, in the middle between two probabilities."""
    found, hits = [], []
    for indices in in_order_of_length(tokens.lengths, EVALUATION_BATCH):
        logits = model.classifier(*tokens.batch(indices, model.device)).float().cpu()
        found.append(logits.sigmoid().flatten())
        hits.append(targets[indices].flatten())
    probabilities, order = torch.cat(found).sort(descending=True)
    right = torch.cat(hits)[order].cumsum(0)
    f1 = 2 * right / (torch.arange(1, len(right) + 1) + right[-1])
    best = int(f1.argmax())
    following = probabilities[best + 1] if best + 1 < len(probabilities) else torch.tensor(0.0)
    return float((probabilities[best] + following) / 2)


@torch.inference_mode()
def _untuned_head(model: Model, tokens: Tokens, targets: torch.Tensor) -> None:
    """Sets the head so that the untuned encoder assigns each text to the class whose centroid is nearest by cosine.

    A centroid is the mean of a class's embeddings, each scaled to length 1. Row c of the head becomes the centroid of
    class c scaled to length COSINE_SCALE / m, where m is the mean length of the embeddings before scaling, and the bias
    0. The head sees embeddings as they are, so a logit is COSINE_SCALE times the cosine, times the text's embedding's
    length over m; the latter is the same for all classes and does not change their order.

    With several labels the centroid of the texts without a label is taken from that of those with it: a label is given
    where the latter is nearer.
    """
    classifier = model.classifier.eval()
    head = classifier.head
    holds = targets if model.several else functional.one_hot(targets, len(model.labels)).float()
    sums, total, length = torch.zeros_like(head.weight), torch.zeros_like(head.weight[0]), 0.0
    for indices in in_order_of_length(tokens.lengths, EVALUATION_BATCH):
        embeddings = classifier.embed(*tokens.batch(indices, model.device))
        scaled = functional.normalize(embeddings)
        sums += holds[indices].to(model.device).T @ scaled
        total += scaled.sum(0)
        length += embeddings.norm(dim=1).sum().item()
    centroids = functional.normalize(sums)
    if model.several:
        centroids -= functional.normalize(total - sums)
    head.weight.copy_(centroids * COSINE_SCALE * len(targets) / length)
    head.bias.zero_()
