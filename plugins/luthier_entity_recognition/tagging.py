"""Entities as tags of words, and back: O is 0, and label i has B at 2 i + 1 and I at 2 i + 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from luthier_entity_recognition.examples import Entity
from luthier_entity_recognition.words import Spans, covered

LABELS_FILE = "labels.json"


def num_tags(labels: Sequence[str]) -> int:
    """Tags that so many labels take."""
    return 2 * len(labels) + 1


def encode(spans: Spans, entities: Iterable[Entity], position: Mapping[str, int]) -> np.ndarray:
    """int64 [words]: the tags of words for entities with labels of these positions; others are left out.

    An entity has the words that it overlaps with, but for those that an earlier one has.
    """
    tags = np.zeros(len(spans[0]), dtype=np.int64)
    taken = 0
    for start, end, label in entities:
        first, behind = covered(spans, start, end)
        first = max(first, taken)
        if first < behind and label in position:
            tags[first:behind] = 2 * position[label] + 2
            tags[first] -= 1
            taken = behind
    return tags


def decode(spans: Spans, probabilities: np.ndarray) -> list[tuple[int, int, int, float]]:
    """Entities as (start, end, label's position, score) from float32 [words, tags].

    Each word has its most likely tag, and I where no entity of its label is open begins one. The score is the mean
    probability of the tags.
    """
    starts, ends = spans
    tags = probabilities.argmax(-1)
    scores = probabilities.max(-1)
    kinds = (tags + 1) // 2
    before = np.concatenate([[0], kinds])[:-1]
    begins = np.flatnonzero((kinds > 0) & ((tags % 2 == 1) | (kinds != before)))
    stops = np.append(np.flatnonzero((kinds != before) | (tags % 2 == 1)), len(tags))
    behind = stops[np.searchsorted(stops, begins, side="right")]
    return [
        (int(starts[first]), int(ends[stop - 1]), int(kinds[first]) - 1, float(scores[first:stop].mean()))
        for first, stop in zip(begins, behind, strict=True)
    ]
