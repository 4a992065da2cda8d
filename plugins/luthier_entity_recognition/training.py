"""Fine-tunes an encoder with a linear head that gives each word a tag, read at the word's first token.

The recipe is AdamW with a rate for the encoder and a higher one for the new head, linear warm-up and decay, and
gradients clipped to norm 1. Read `fine_tune` from the top. With the same seed, number of threads and machine, the
weights come out the same bit by bit.
"""

from __future__ import annotations

import json
import math
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

from luthier.tasks.entity_recognition.v1 import entity_recognition_pb2 as pb
from luthier.toolkit.batches import in_order_of_length, length_buckets
from luthier.toolkit.devices import device_of
from luthier.toolkit.export import check_onnx, export_onnx
from luthier.toolkit.loop import Beat, Recipe, Validation, fit, share_error
from luthier.toolkit.optim import decay_matrices
from luthier.toolkit.precision import wants_bfloat16
from luthier.toolkit.text import (
    carry_over,
    earlier_head,
    load_encoder,
    random_inputs,
    save_source,
    spell_out_attention,
)
from luthier_entity_recognition import metrics, tagging, words
from luthier_entity_recognition.codec import predictions
from luthier_entity_recognition.examples import Entity, entities_of
from luthier_entity_recognition.tokens import Preprocessing, TextTokenizer, Tokenised, batch, by_word, frame, plain

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from luthier.task import Run

EVALUATION_BATCH = 64
IGNORED = -100
"""Target of tokens that are not the first of a word."""
ENOUGH_STEPS = 1000
"""What a fine-tune takes, much or little as there is to learn from: few examples want many passes (Mosbach et al. 2021,
"On the Stability of Fine-tuning BERT")."""
FEWEST_EPOCHS, MOST_EPOCHS = 3, 20
EXPORT_TOLERANCE = 1e-4
"""The most that a probability of the ONNX file may be away from PyTorch's."""


class Tagger(nn.Module):
    """An encoder and a head: `input_ids`, `attention_mask` [batch, tokens] to logits [batch, tokens, tags]."""

    def __init__(self, encoder: Any, hidden_size: int, num_tags: int, dropout: float) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, num_tags)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits: torch.Tensor = self.head(self.dropout(states))
        return logits


class Probabilities(nn.Module):
    """What is exported: a tagger with its softmax."""

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        self.tagger = tagger

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Probabilities [batch, tokens, tags]."""
        probabilities: torch.Tensor = self.tagger(input_ids, attention_mask).softmax(-1)
        return probabilities


@dataclass(frozen=True)
class Model:
    """A fine-tuned tagger, and what it takes to use it."""

    tagger: Tagger
    tokenizer: Any
    """Of transformers."""
    texts: TextTokenizer
    labels: list[str]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tagger.head.weight.device

    def inputs(self, windows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `attention_mask`, int64 [windows, longest]."""
        ids, mask = batch(windows, self.texts.preprocessing.pad_id)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)


def fine_tune(run: Run) -> Model:
    """Fine-tunes the encoder in `run.base` on the texts of `train`.

    It is validated after each epoch, and the weights of the last one that is not clearly below the best F1 are kept: by
    more than the standard error of a difference between two shares of as many entities. Where there is no validation
    part, or no entity in it, every epoch is trained and the last weights are kept.
    An earlier version as the base is trained on: it keeps its labels, with what it knows of them, and admits new ones.
    Raises InvalidArgument where the base or the length does not suit, Cancelled where the operation was cancelled.
    """
    config: pb.Config = run.config
    device = device_of(run)
    torch.manual_seed(run.seed)
    random = np.random.default_rng(run.seed)

    train, validation = run.parts["train"], run.parts["validation"]
    entities = entities_of(train)
    encoder, tokenizer = load_encoder(run, config.max_length, pretrained=not config.from_scratch)
    earlier = earlier_head(run)
    labels = sorted({label for one in entities for _, _, label in one} | tagging.labels_of(earlier))
    texts = _text_tokenizer(tokenizer, config.max_length, train["text"].to_pylist(), entities)
    tagger = Tagger(encoder, encoder.config.hidden_size, len(tagging.names(labels)), config.dropout).to(device)
    carry_over(earlier, tagger.head, tagging.names(labels))
    model = Model(tagger, tokenizer, texts, labels)
    windows, targets = _windows(model, texts(train["text"].to_pylist()), entities)
    lengths = np.array([len(window) for window in windows])
    held_out, truth = texts(validation["text"].to_pylist()), entities_of(validation)

    def loss(indices: np.ndarray) -> torch.Tensor:
        logits = tagger(*model.inputs([windows[i] for i in indices]))
        tags = nn.utils.rnn.pad_sequence([targets[i] for i in indices], batch_first=True, padding_value=IGNORED)
        return functional.cross_entropy(logits.float().flatten(0, 1), tags.to(device).flatten(), ignore_index=IGNORED)

    def validate(beat: Beat) -> Validation:
        return _validate(model, held_out, truth, beat)

    recipe = Recipe(
        epochs=config.epochs or enough_epochs(len(windows), config.batch_size),
        batch_size=config.batch_size,
        warmup=config.warmup,
        patience=config.patience,
        bfloat16=wants_bfloat16(config.precision, device),
    )
    groups = [
        *decay_matrices(encoder, config.learning_rate, config.weight_decay),
        *decay_matrices(tagger.head, config.head_learning_rate, config.weight_decay),
    ]
    batches = partial(length_buckets, lengths, config.batch_size, random)
    fit(run, tagger, groups, recipe, len(windows), batches, loss, validate if any(truth) else None, random)
    return model


def enough_epochs(num_examples: int, batch_size: int) -> int:
    """The passes over so many examples that come to ENOUGH_STEPS, within bounds."""
    epochs = math.ceil(ENOUGH_STEPS / math.ceil(num_examples / batch_size))
    return min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS)


def predict(model: Model, instances: Sequence[Any]) -> list[Message]:
    """Finds entities with PyTorch in 32 bits and the tokenizer as it was trained with."""
    model.tagger.eval()
    texts = model.texts([instance.text for instance in instances])
    found: list[Message] = [pb.Prediction() for _ in instances]
    for indices in _chunks(texts):
        chosen, asked = [texts[i] for i in indices], [instances[i] for i in indices]
        with torch.inference_mode():
            probabilities = _logits(model, chosen).softmax(-1).numpy()
        for i, prediction in zip(indices, predictions(chosen, probabilities, asked, model.labels), strict=True):
            found[i] = prediction
    return found


def export(model: Model, directory: Path) -> None:
    """Writes `model.onnx`, `labels.json`, `tokenizer.json`, `preprocessing.json`, and the folder `source`.

    The graph takes `input_ids` and `attention_mask`, int64 [batch, sequence], and gives `probabilities`, float32
    [batch, sequence, tags]. Raises ParityFailed where it does not compute what PyTorch does.
    """
    spell_out_attention(model.tagger.encoder)
    module = Probabilities(model.tagger).eval()
    max_length = model.texts.preprocessing.max_length
    example = random_inputs(model.tokenizer, 2, max_length // 2, model.device)
    axes = {0: Dim("batch"), 1: Dim("sequence", max=max_length)}
    path = export_onnx(module, example, ["probabilities"], axes, directory)
    others = [(1, max_length), (2, max_length // 2), (7, 3)]
    batches = (random_inputs(model.tokenizer, batch, length, model.device) for batch, length in others)
    check_onnx(path, module, batches, EXPORT_TOLERANCE)

    model.texts.save(directory)
    (directory / tagging.LABELS_FILE).write_text(
        json.dumps(model.labels, ensure_ascii=False, indent=2), encoding="utf-8"
    )
    save_source(directory, model.tagger.encoder, model.tokenizer, model.tagger.head, tagging.names(model.labels))


def _text_tokenizer(
    tokenizer: Any, max_length: int, texts: Sequence[str], entities: Sequence[Sequence[Entity]]
) -> TextTokenizer:
    """Cuts texts as suits the base, and words so that few entities begin or end within one."""
    backend = plain(tokenizer.backend_tokenizer)
    prefix, suffix = frame(backend)
    cut = words.num_cut(texts, [[(start, end) for start, end, _ in one] for one in entities], joined=True)
    preprocessing = Preprocessing(
        max_length=max_length,
        joined=cut <= words.MAX_CUT * sum(map(len, entities)),
        prefix=prefix,
        suffix=suffix,
        pad_id=tokenizer.pad_token_id,
    )
    return TextTokenizer(backend, preprocessing)


def _windows(
    model: Model, texts: Sequence[Tokenised], entities: Sequence[Sequence[Entity]]
) -> tuple[list[np.ndarray], list[torch.Tensor]]:
    """The windows that have a word, each int64 [tokens], and the tags of their tokens, of the same shape."""
    position = {label: i for i, label in enumerate(model.labels)}
    windows, targets = [], []
    for text, found in zip(texts, entities, strict=True):
        tags = torch.from_numpy(tagging.encode(text.words, found, position))
        for i, window in enumerate(text.windows):
            here = text.window == i
            if here.any():
                target = torch.full((len(window),), IGNORED)
                target[text.position[here]] = tags[here]
                windows.append(window)
                targets.append(target)
    return windows, targets


def _chunks(texts: Sequence[Tokenised]) -> list[np.ndarray]:
    """Indices of texts of about the same length that have few enough windows together."""
    sizes = np.array([sum(map(len, text.windows)) for text in texts])
    return list(in_order_of_length(sizes, EVALUATION_BATCH))


def _logits(model: Model, texts: Sequence[Tokenised]) -> torch.Tensor:
    """Logits of all windows of texts, float32 [windows, longest, tags], so many windows at once."""
    windows = [window for text in texts for window in text.windows]
    ids, mask = model.inputs(windows)
    parts = zip(torch.split(ids, EVALUATION_BATCH), torch.split(mask, EVALUATION_BATCH), strict=True)
    return torch.cat([model.tagger(*part).float().cpu() for part in parts])


def _validate(model: Model, texts: Sequence[Tokenised], truth: Sequence[Sequence[Entity]], beat: Beat) -> Validation:
    """Strict F1, and the mean loss of a word."""
    position = {label: i for i, label in enumerate(model.labels)}
    found: list[list[Entity]] = [[] for _ in texts]
    loss, num_words = 0.0, 0
    for indices in _chunks(texts):
        chosen = [texts[i] for i in indices]
        log_probabilities = _logits(model, chosen).log_softmax(-1).numpy()
        for i, text, of_words in zip(indices, chosen, by_word(chosen, log_probabilities), strict=True):
            tags = tagging.encode(text.words, truth[i], position)
            loss -= float(of_words[np.arange(len(tags)), tags].sum())
            num_words += len(tags)
            spans = tagging.decode(text.words, np.exp(of_words))
            found[i] = [(start, end, model.labels[label]) for start, end, label, _ in spans]
        beat()
    f1 = metrics.score(truth, found).metrics["f1"]
    values = {"validation/f1": f1, "validation/loss": loss / max(1, num_words)}
    return Validation(f1, share_error(f1, sum(map(len, truth))), values)
