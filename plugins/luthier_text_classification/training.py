"""Fine-tunes an encoder with a linear head: the mean of the tokens' last hidden states, dropout, one matrix.

The recipe is AdamW with a rate for the encoder and a ten times higher one for the new head, linear warm-up and decay,
and gradients clipped to norm 1. Read `fine_tune` from the top. With the same seed, number of threads and machine, the
weights come out the same bit by bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from luthier.errors import InvalidArgument
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb
from luthier.toolkit.batches import in_order_of_length, length_buckets, pad
from luthier.toolkit.checkpoint import BestCheckpoint
from luthier.toolkit.export import check_onnx, export_onnx
from luthier.toolkit.optim import decay_matrices, warm_up_then_decay
from luthier.toolkit.precision import autocast, has_bfloat16
from luthier.toolkit.progress import Progress
from luthier_text_classification.codec import LABELS_FILE, PREPROCESSING_FILE, TOKENIZER_FILE

if TYPE_CHECKING:
    import pyarrow as pa
    from google.protobuf.message import Message

    from luthier.task import Run

MAX_GRADIENT_NORM = 1.0
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
    """What is exported: a classifier with its softmax."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Probabilities [batch, classes]."""
        probabilities: torch.Tensor = self.classifier(input_ids, attention_mask).softmax(-1)
        return probabilities


@dataclass(frozen=True)
class Model:
    """A fine-tuned classifier, and what it takes to use it."""

    classifier: Classifier
    tokenizer: Any
    labels: list[str]
    max_length: int

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.classifier.head.weight.device


@dataclass(frozen=True)
class Tokens:
    """Texts as token numbers, each an int64 tensor [tokens]; `lengths` is int64 [texts]."""

    ids: list[torch.Tensor]
    lengths: np.ndarray

    def batch(self, indices: np.ndarray, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `attention_mask` of some texts, padded to the longest, on the model's device."""
        ids, mask = pad([self.ids[i] for i in indices], model.tokenizer.pad_token_id)
        return ids.to(model.device), mask.to(model.device)


def fine_tune(run: Run) -> Model:
    """Fine-tunes the encoder in `run.base` on the texts of `train`.

    It is validated after each epoch, and the weights of the last one that is not clearly below the best accuracy are
    kept: by more than the standard error of a difference between two shares of as many examples. Where
    there is no validation part, every epoch is trained and the last weights are kept. With 0 epochs see
    `_untuned_head`.
    Raises InvalidArgument where the base or the length does not suit, Cancelled where the operation was cancelled.
    """
    config: pb.Config = run.config
    device = torch.device(run.device)
    bfloat16 = _wants_bfloat16(config.precision, device)
    torch.manual_seed(run.seed)
    random = np.random.default_rng(run.seed)

    encoder, tokenizer = _load_base(run, config.max_length)
    labels = sorted(set(run.parts["train"]["label"].to_pylist()))
    classifier = Classifier(encoder, encoder.config.hidden_size, len(labels), config.dropout).to(device)
    model = Model(classifier, tokenizer, labels, config.max_length)
    tokens, targets = _tokenise_part(model, run.parts["train"])
    validation, validation_targets = _tokenise_part(model, run.parts["validation"])

    steps = config.epochs * math.ceil(len(targets) / config.batch_size)
    optimizer = torch.optim.AdamW(
        [
            *decay_matrices(encoder, config.learning_rate, config.weight_decay),
            *decay_matrices(classifier.head, config.head_learning_rate, config.weight_decay),
        ],
        fused=True,
    )
    schedule = warm_up_then_decay(optimizer, steps, config.warmup)
    checkpoint = BestCheckpoint(classifier, run.directory, config.patience)
    progress = Progress(run, steps)
    started = time.monotonic()
    epoch = 0

    if config.epochs == 0:
        _untuned_head(model, tokens, targets, progress)
        if len(validation_targets):
            accuracy, loss = _validate(model, validation, validation_targets, bfloat16, progress)
            progress.report({"validation/accuracy": accuracy, "validation/loss": loss})

    for epoch in range(1, config.epochs + 1):
        classifier.train()
        for indices in length_buckets(tokens.lengths, config.batch_size, random):
            input_ids, attention_mask = tokens.batch(indices, model)
            with autocast(device, bfloat16):
                logits = classifier(input_ids, attention_mask)
            step_loss = functional.cross_entropy(logits.float(), targets[indices].to(device))
            optimizer.zero_grad()
            step_loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped.
            nn.utils.clip_grad_norm_(classifier.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            progress.advance(len(indices), step_loss)
        if len(validation_targets):
            accuracy, loss = _validate(model, validation, validation_targets, bfloat16, progress)
            progress.report({"validation/accuracy": accuracy, "validation/loss": loss})
            if not checkpoint.update(
                epoch, accuracy, math.sqrt(2 * accuracy * (1 - accuracy) / len(validation_targets))
            ):
                break

    if checkpoint.epoch:
        checkpoint.restore()
    seconds = time.monotonic() - started
    run.figures |= {
        "training_s": seconds,
        "examples_per_s": progress.examples / seconds,
        "epochs_run": epoch,
        "best_epoch": checkpoint.epoch or epoch,
        "steps": progress.step,
    }
    return model


def predict(model: Model, instances: Sequence[Any]) -> list[Message]:
    """Classifies with PyTorch in 32 bits and the tokenizer of transformers."""
    classifier = model.classifier.eval()
    tokens = _tokenise(model, [instance.text for instance in instances])
    predictions: list[Message] = [pb.Prediction() for _ in instances]
    for indices in in_order_of_length(tokens.lengths, EVALUATION_BATCH):
        with torch.inference_mode():
            probabilities = classifier(*tokens.batch(indices, model)).softmax(-1).cpu()
        for i, row in zip(indices, probabilities, strict=True):
            scores, classes = row.topk(min(instances[i].top_k or 1, len(model.labels)))
            top = [
                pb.ClassScore(label=model.labels[c], score=s)
                for s, c in zip(scores.tolist(), classes.tolist(), strict=True)
            ]
            predictions[i] = pb.Prediction(label=top[0].label, score=top[0].score, top=top)
    return predictions


def export(model: Model, directory: Path) -> None:
    """Writes `model.onnx`, `labels.json`, `tokenizer.json` and `preprocessing.json`.

    The graph takes `input_ids` and `attention_mask`, int64 [batch, sequence], and gives `probabilities`, float32
    [batch, classes]. Raises ParityFailed where it does not compute what PyTorch does.
    """
    # Spelt out, attention becomes fewer operators than the fused kernel, which guards against rows without a token:
    # the file is 4 to 12 % faster.
    model.classifier.encoder.set_attn_implementation("eager")
    module = Probabilities(model.classifier).eval()
    example = _random_inputs(model, batch=2, length=model.max_length // 2)
    axes = {0: Dim("batch"), 1: Dim("sequence", max=model.max_length)}
    path = export_onnx(module, example, ["probabilities"], axes, directory)
    others = [(1, model.max_length), (2, model.max_length // 2), (7, 3)]
    batches = (_random_inputs(model, batch, length) for batch, length in others)
    check_onnx(path, module, batches, EXPORT_TOLERANCE)

    model.tokenizer.backend_tokenizer.save(str(directory / TOKENIZER_FILE))
    preprocessing = {
        "max_length": model.max_length,
        "pad_id": model.tokenizer.pad_token_id,
        "pad_token": model.tokenizer.pad_token,
    }
    (directory / PREPROCESSING_FILE).write_text(
        json.dumps(preprocessing, ensure_ascii=False, indent=2), encoding="utf-8"
    )
    (directory / LABELS_FILE).write_text(json.dumps(model.labels, ensure_ascii=False, indent=2), encoding="utf-8")


def _wants_bfloat16(precision: int, device: torch.device) -> bool:
    match precision:
        case pb.PRECISION_FLOAT32:
            return False
        case pb.PRECISION_BFLOAT16:
            return True
        case _:
            return has_bfloat16(device)


def _load_base(run: Run, max_length: int) -> tuple[Any, Any]:
    """Returns the encoder and the tokenizer, or raises InvalidArgument where they do not suit."""
    if run.base is None or run.warm_start:
        why = "name an encoder of the catalogue; a model's version keeps its ONNX graph, not weights to go on from"
        raise InvalidArgument({"base": why})
    transformers_logging.disable_progress_bar()
    encoder, loading = AutoModel.from_pretrained(
        run.base, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    # Many checkpoints come without a pooler, and nothing here uses it. Anything else would start from random weights.
    if missing := sorted(key for key in loading["missing_keys"] if not key.startswith("pooler.")):
        raise InvalidArgument({"base": f"its checkpoint lacks weights of the encoder, {missing[0]} for one"})
    tokenizer = AutoTokenizer.from_pretrained(
        run.base, local_files_only=True, padding_side="right", truncation_side="right"
    )
    if not tokenizer.is_fast or tokenizer.pad_token is None or not tokenizer("").input_ids:
        raise InvalidArgument(
            {"base": "its tokenizer needs a tokenizer.json, a padding token, and a token that begins or ends each text"}
        )
    longest = min(tokenizer.model_max_length, getattr(encoder.config, "max_position_embeddings", math.inf))
    if max_length > longest:
        raise InvalidArgument(
            {"config.max_length": f"{max_length} is more than the {longest} tokens that the base reads"}
        )
    return encoder, tokenizer


def _tokenise_part(model: Model, part: pa.Table) -> tuple[Tokens, torch.Tensor]:
    """The texts' tokens, and the positions of their classes among the labels: int64 [texts]."""
    position = {label: i for i, label in enumerate(model.labels)}
    targets = torch.tensor([position[label] for label in part["label"].to_pylist()], dtype=torch.int64)
    return _tokenise(model, part["text"].to_pylist()), targets


def _tokenise(model: Model, texts: list[str]) -> Tokens:
    """Tokenises everything once, up front."""
    encoded = model.tokenizer(texts, truncation=True, max_length=model.max_length).input_ids if texts else []
    return Tokens([torch.tensor(ids) for ids in encoded], np.array([len(ids) for ids in encoded], dtype=np.int64))


def _validate(
    model: Model, tokens: Tokens, targets: torch.Tensor, bfloat16: bool, progress: Progress
) -> tuple[float, float]:
    """Accuracy and mean loss."""
    classifier = model.classifier.eval()
    correct, loss = 0, 0.0
    for indices in in_order_of_length(tokens.lengths, EVALUATION_BATCH):
        with torch.inference_mode(), autocast(model.device, bfloat16):
            logits = classifier(*tokens.batch(indices, model)).float().cpu()
        correct += int((logits.argmax(-1) == targets[indices]).sum())
        loss += functional.cross_entropy(logits, targets[indices], reduction="sum").item()
        progress.beat()
    return correct / len(targets), loss / len(targets)


@torch.inference_mode()
def _untuned_head(model: Model, tokens: Tokens, targets: torch.Tensor, progress: Progress) -> None:
    """Sets the head so that the untuned encoder assigns each text to the class whose centroid is nearest by cosine.

    A centroid is the mean of a class's embeddings, each scaled to length 1. Row c of the head becomes the centroid of
    class c scaled to length COSINE_SCALE / m, where m is the mean length of the embeddings before scaling, and the bias
    0. The head sees embeddings as they are, so a logit is COSINE_SCALE times the cosine, times the text's embedding's
    length over m; the latter is the same for all classes and does not change their order.
    """
    classifier = model.classifier.eval()
    head = classifier.head
    sums, length = torch.zeros_like(head.weight), 0.0
    for indices in in_order_of_length(tokens.lengths, EVALUATION_BATCH):
        embeddings = classifier.embed(*tokens.batch(indices, model))
        sums.index_add_(0, targets[indices].to(model.device), functional.normalize(embeddings))
        length += embeddings.norm(dim=1).sum().item()
        progress.beat()
    head.weight.copy_(functional.normalize(sums) * COSINE_SCALE * len(targets) / length)
    head.bias.zero_()


def _random_inputs(model: Model, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Tokens without meaning, the first text `length` long and each further one shorter, down to one token."""
    generator = torch.Generator().manual_seed(batch)
    texts = [torch.randint(len(model.tokenizer), (max(1, length - i),), generator=generator) for i in range(batch)]
    ids, mask = pad(texts, model.tokenizer.pad_token_id)
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
