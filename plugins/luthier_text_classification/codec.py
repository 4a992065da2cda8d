"""The two ends of a served classifier: texts to tokens, probabilities to classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from luthier.task import Codec, InvalidArgument
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

LABELS_FILE = "labels.json"
PREPROCESSING_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"


class TextClassificationCodec(Codec):
    """Reads `labels.json`, `preprocessing.json` and `tokenizer.json` of a bundle."""

    def __init__(self, directory: Path) -> None:
        self._labels: list[str] = json.loads((directory / LABELS_FILE).read_text(encoding="utf-8"))
        preprocessing: dict[str, Any] = json.loads((directory / PREPROCESSING_FILE).read_text(encoding="utf-8"))
        self._threshold: float | None = preprocessing.get("threshold")
        """Of a model that gives several labels."""
        # Set once: a tokenizer is safe to share between threads as long as nobody changes it.
        self._tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
        self._tokenizer.enable_truncation(preprocessing["max_length"])
        self._tokenizer.enable_padding(pad_id=preprocessing["pad_id"], pad_token=preprocessing["pad_token"])

    def encode(self, instances: Sequence[Any]) -> dict[str, np.ndarray]:
        """Returns `input_ids` and `attention_mask`, both int64 [batch, longest], cut to the model's length."""
        violations = {}
        for i, instance in enumerate(instances):
            if instance.top_k < 0:
                violations[f"instances[{i}].top_k"] = f"{instance.top_k} is below 0"
            if instance.HasField("threshold") and (why := self._unsuited(instance.threshold)):
                violations[f"instances[{i}].threshold"] = why
        if violations:
            raise InvalidArgument(violations)
        encodings = self._tokenizer.encode_batch_fast([instance.text for instance in instances])
        return {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
        }

    def decode(self, outputs: Mapping[str, np.ndarray], instances: Sequence[Any]) -> list[Message]:
        """Reads `probabilities`, float32 [batch, classes]; more classes than there are cannot be had."""
        return [
            self._prediction(row, instance) for row, instance in zip(outputs["probabilities"], instances, strict=True)
        ]

    def _unsuited(self, threshold: float) -> str:
        if self._threshold is None:
            return "the model gives each text one class; leave it out"
        return "" if 0 <= threshold <= 1 else f"{threshold} is not between 0 and 1"

    def _prediction(self, probabilities: np.ndarray, instance: Any) -> pb.Prediction:
        order = np.argsort(-probabilities, kind="stable")
        top = self._entries(probabilities, order[: instance.top_k or 1])
        prediction = pb.Prediction(label=top[0].label, score=top[0].score, top=top)
        if self._threshold is not None:
            threshold = instance.threshold if instance.HasField("threshold") else self._threshold
            reached = np.count_nonzero(probabilities.astype(np.float64) >= threshold)
            prediction.labels.extend(self._entries(probabilities, order[:reached]))
        return prediction

    def _entries(self, probabilities: np.ndarray, classes: np.ndarray) -> list[pb.ClassScore]:
        return [pb.ClassScore(label=self._labels[i], score=probabilities[i]) for i in classes]
