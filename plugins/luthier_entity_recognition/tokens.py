"""Texts as the model reads them: windows of tokens, and the place among them of each word.

Codec and training share this module, so that both see the same words, windows and tags. Offsets are the tokenizer's
own, in code points of the text as it was given, whatever the tokenizer makes of case, accents or control characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from luthier_entity_recognition import words
from luthier_entity_recognition.words import Spans

PREPROCESSING_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How texts are cut; `preprocessing.json`."""

    max_length: int
    """Tokens of a window, with those that begin and end it."""
    joined: bool
    """Whether words go on over hyphens and the like, see `words`."""
    prefix: list[int]
    """Tokens that begin each window."""
    suffix: list[int]
    """Tokens that end each window."""
    pad_id: int

    def save(self, directory: Path) -> None:
        """Writes it into a bundle."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        (directory / PREPROCESSING_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Preprocessing:
        """Reads it from a bundle."""
        return cls(**json.loads((directory / PREPROCESSING_FILE).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Tokenised:
    """One text."""

    windows: list[np.ndarray]
    """Token numbers of each window, int64; there is at least one."""
    words: Spans
    """Where the words are that the tokenizer did not drop."""
    window: np.ndarray
    """int64 [words]: the window in which a word is farthest from where a window was cut."""
    position: np.ndarray
    """int64 [words]: the word's first token in that window."""


class TextTokenizer:
    """Cuts texts into words, tokens and windows. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, preprocessing: Preprocessing) -> None:
        """Takes a tokenizer without truncation and padding, which nobody changes any more; see `plain`."""
        self.preprocessing = preprocessing
        self._tokenizer = tokenizer
        self._size = preprocessing.max_length - len(preprocessing.prefix) - len(preprocessing.suffix)

    @classmethod
    def open(cls, directory: Path) -> TextTokenizer:
        """That of a bundle."""
        return cls(plain(Tokenizer.from_file(str(directory / TOKENIZER_FILE))), Preprocessing.load(directory))

    def save(self, directory: Path) -> None:
        """Writes `tokenizer.json` and `preprocessing.json`."""
        self._tokenizer.save(str(directory / TOKENIZER_FILE))
        self.preprocessing.save(directory)

    def __call__(self, texts: Sequence[str]) -> list[Tokenised]:
        """Each text."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self._tokenise(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def _tokenise(self, text: str, encoding: Any) -> Tokenised:
        ids = np.array(encoding.ids, dtype=np.int64)
        pieces = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        spans, first = _align(words.split(text, joined=self.preprocessing.joined), (pieces[0], pieces[1]))
        starts = _window_starts(len(ids), self._size)
        prefix, suffix = self.preprocessing.prefix, self.preprocessing.suffix
        borders = (starts[:-1] + self._size + starts[1:]) // 2
        window = np.searchsorted(borders, first, side="right")
        return Tokenised(
            windows=[
                np.concatenate([prefix, ids[start : start + self._size], suffix]).astype(np.int64) for start in starts
            ],
            words=spans,
            window=window,
            position=first - starts[window] + len(prefix),
        )


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer, changed so that it neither cuts nor pads, and takes what looks like its special tokens for text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind each text."""
    inner = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    count = len(whole) - len(inner)
    before = next(i for i in range(count + 1) if whole[i : i + len(inner)] == inner)
    return whole[:before], whole[before + len(inner) :]


def batch(windows: Sequence[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """`input_ids` and `attention_mask`, int64 [windows, longest]."""
    lengths = np.array([len(window) for window in windows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate(windows)
    return ids, mask.astype(np.int64)


def by_word(texts: Sequence[Tokenised], rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array [windows, tokens, …] of all texts' windows that are the words', for each text."""
    start = 0
    for text in texts:
        yield rows[start + text.window, text.position]
        start += len(text.windows)


def _align(spans: Spans, pieces: Spans) -> tuple[Spans, np.ndarray]:
    """The words that have a token, and the first token of each.

    A token belongs to the first word that it overlaps with. A word without a token of its own goes with the one before
    where a token spans both, as in scripts whose characters are words; else, where the tokenizer dropped it, it is left
    out, and an entity may go over it.
    """
    starts, ends = spans
    word = np.searchsorted(ends, pieces[0], side="right")
    tokens = np.flatnonzero(np.append(starts, np.iinfo(np.int64).max)[word] < pieces[1])
    if not len(tokens):
        return (starts[:0], ends[:0]), tokens
    owned, at = np.unique(word[tokens], return_index=True)
    last = np.append(at[1:], len(tokens)) - 1
    reached = np.searchsorted(starts, pieces[1][tokens[last]], side="left")
    behind = np.minimum(reached, np.append(owned[1:], len(starts)))
    return (starts[owned], ends[np.maximum(behind - 1, owned)]), tokens[at]


def _window_starts(length: int, size: int) -> np.ndarray:
    """Where windows begin over so many tokens: as few as overlap by a quarter or more, at even distances."""
    overlap = size // 4
    count = max(1, -(-(length - overlap) // (size - overlap)))
    return np.arange(count) * max(0, length - size) // max(1, count - 1)
