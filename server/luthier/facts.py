"""Facts of images, texts and classifications, of which `Task.features` of several tasks are made: cheap, no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from luthier import images

MOST_WORDS = 512
"""Words of a text that are looked at."""
SIDE = 128
"""Pixels of the longer side that an image is looked at in."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_LONG = 24
"""A run of so many letters is no word but writing without spaces, which is taken letter by letter."""


class _Scored(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float: ...


def of_image(data: bytes) -> dict[str, float]:
    """Brightness, contrast and saturation between 0 and 1, sharpness (the mean difference of neighbours), the logarithm
    of width over height, and megapixels; none where the bytes are no image."""
    try:
        header = images.inspect(data)
        pixels = images.thumbnail(data, SIDE).astype(np.float32) / 255
    except images.ImageError:
        return {}
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    highest = pixels.max(axis=2)
    range_of = highest - pixels.min(axis=2)
    steps = [np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1) if grey.shape[axis] > 1]
    return {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "saturation": float((range_of / np.maximum(highest, 1 / 255)).mean()),
        "sharpness": float(np.mean(steps)) if steps else 0.0,
        "aspect": math.log(header.width / header.height),
        "megapixels": header.width * header.height / 1e6,
    }


def of_text(text: str) -> dict[str, float | Sequence[str]]:
    """Length in characters and words, mean length of a word, the shares of capitals, digits, signs and letters that are
    not Latin, and the words themselves in small letters."""
    length = max(len(text), 1)
    letters = sum(character.isalpha() for character in text)
    words = _words(text)
    return {
        "characters": float(len(text)),
        "words": float(len(text.split())),
        "word_length": letters / max(len(text.split()), 1),
        "capitals": sum(character.isupper() for character in text) / length,
        "digits": sum(character.isdigit() for character in text) / length,
        "signs": sum(not (c.isalnum() or c.isspace()) for c in text) / length,
        "foreign_letters": sum(c.isalpha() and c > "\u024f" for c in text) / length,
        "vocabulary": words,
    }


def of_classes(label: str, score: float, top: Sequence[_Scored]) -> dict[str, float | str]:
    """The class predicted, its probability, and where two classes are given how far it is ahead."""
    facts: dict[str, float | str] = {"predicted": label, "confidence": score}
    if len(top) > 1:
        facts["margin"] = top[0].score - top[1].score
    return facts


def _words(text: str) -> list[str]:
    found: list[str] = []
    for word in _WORD.findall(text.casefold()[: 16 * MOST_WORDS]):
        found.extend(word if len(word) > _LONG else [word])
        if len(found) >= MOST_WORDS:
            break
    return found[:MOST_WORDS]
