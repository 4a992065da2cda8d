"""The two ends of a served recogniser: texts to windows of tokens, probabilities of tags to entities."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.task import Codec, InvalidArgument
from luthier.tasks.entity_recognition.v1 import entity_recognition_pb2 as pb
from luthier_entity_recognition import tagging
from luthier_entity_recognition.tokens import TextTokenizer, batch, by_word

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from luthier_entity_recognition.tokens import Tokenised


class EntityRecognitionCodec(Codec):
    """Reads `labels.json`, `preprocessing.json` and `tokenizer.json` of a bundle."""

    max_rows = 64

    def __init__(self, directory: Path) -> None:
        self._labels: list[str] = json.loads((directory / tagging.LABELS_FILE).read_text(encoding="utf-8"))
        self._tokenizer = TextTokenizer.open(directory)

    def encode(self, instances: Sequence[Any]) -> dict[str, np.ndarray]:
        """Returns `input_ids` and `attention_mask`, both int64 [windows, longest]: all windows of all texts."""
        if violations := {
            f"instances[{i}].min_score": f"{instance.min_score:g} is not between 0 and 1"
            for i, instance in enumerate(instances)
            if not 0 <= instance.min_score <= 1
        }:
            raise InvalidArgument(violations)
        windows = [window for text in self._tokenised(instances) for window in text.windows]
        ids, mask = batch(windows, self._tokenizer.preprocessing.pad_id)
        return {"input_ids": ids, "attention_mask": mask}

    def decode(self, outputs: Mapping[str, np.ndarray], instances: Sequence[Any]) -> list[Message]:
        """Reads `probabilities`, float32 [windows, longest, tags].

        The texts are cut into words and tokens once more, which takes a thirtieth of the time that MiniLM takes.
        """
        return list(predictions(self._tokenised(instances), outputs["probabilities"], instances, self._labels))

    def _tokenised(self, instances: Sequence[Any]) -> list[Tokenised]:
        return self._tokenizer([instance.text for instance in instances])


def predictions(
    texts: Sequence[Tokenised], probabilities: np.ndarray, instances: Sequence[Any], labels: Sequence[str]
) -> Iterator[pb.Prediction]:
    """One for each instance, of the probabilities of the tags in all windows: [windows, tokens, tags]."""
    for text, of_words, instance in zip(texts, by_word(texts, probabilities), instances, strict=True):
        yield pb.Prediction(
            entities=[
                pb.Entity(label=labels[label], start=start, end=end, text=instance.text[start:end], score=score)
                for start, end, label, score in tagging.decode(text.words, of_words)
                if score >= instance.min_score
            ]
        )
