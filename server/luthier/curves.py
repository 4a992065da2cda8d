"""Lines that a task's `score` draws beside its figures: precision over recall, and how far confidence can be believed.

Every function makes `Curve` messages of at most MOST_POINTS points, for `Evaluation.curves`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.v1.evaluation_pb2 import Curve

MOST_POINTS = 200
"""More cannot be told apart in a chart."""
MOST_CLASSES = 9
"""Classes with a line of their own in one chart."""
BINS = 10
"""Of confidence, each a tenth wide."""

Numbers = Sequence[float] | np.ndarray


def precision_recall(
    hits: Sequence[bool] | np.ndarray,
    scores: Numbers,
    *,
    label: str,
    positives: int | None = None,
    title: str = "Precision and recall",
) -> Curve:
    """Precision over recall as the score that is asked for falls; the label gets the average precision.

    `hits[i]` says whether what was found with `scores[i]` is right. `positives` counts what there was to find, where
    that is more than the hits: objects without a detection, classes that were not among the best. The average precision
    is the sum over all scores of (R_n - R_{n-1}) P_n, as scikit-learn defines it, without interpolation.
    """
    return _Line.of(hits, scores, positives).curve(title, label)


def reliability(confidences: Numbers, hits: Sequence[bool] | np.ndarray, *, title: str = "Reliability") -> list[Curve]:
    """The share of right predictions over their confidence, in BINS bins, and the line where the two are equal.

    The label gets the expected calibration error: how far the two are apart, on average over the predictions (Guo et
    al. 2017, "On Calibration of Modern Neural Networks"). Bins without predictions have no point.
    """
    confidence, right = np.asarray(confidences, dtype=np.float64), np.asarray(hits, dtype=np.float64)
    bins = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    filled = np.flatnonzero(counts)
    x = np.bincount(bins, weights=confidence, minlength=BINS)[filled] / counts[filled]
    y = np.bincount(bins, weights=right, minlength=BINS)[filled] / counts[filled]
    error = float(np.sum(np.abs(x - y) * counts[filled])) / max(1, len(right))
    line = Curve(title=title, x_label="confidence", y_label="share that is right", x=x.tolist(), y=y.tolist())
    line.label = f"predictions · calibration error {error:.3f}"
    ideal = Curve(title=title, x_label=line.x_label, y_label=line.y_label, x=[0, 1], y=[0, 1], reference=True)
    ideal.label = "as right as confident"
    return [line, ideal]


def classifier(truth: Sequence[str], scores: Sequence[Mapping[str, float]]) -> list[Curve]:
    """Precision over recall of each class against the rest, and the reliability of the most likely class.

    `scores[i]` has example i's probabilities by class, of all classes or of the k best alone. A class that is left out
    counts as not found; no such class can have a probability above 1 / (k + 1), and down to there the lines are exact.
    The first line is of all classes together (micro-averaged); then come those of the lowest average precision.
    """
    return multi_label([(label,) for label in truth], scores)


def multi_label(truth: Sequence[Collection[str]], scores: Sequence[Mapping[str, float]]) -> list[Curve]:
    """The same of examples that have any number of classes."""
    found: dict[str, tuple[list[bool], list[float]]] = defaultdict(lambda: ([], []))
    best: tuple[list[bool], list[float]] = ([], [])
    for true, by_class in zip(truth, scores, strict=True):
        for label, score in by_class.items():
            found[label][0].append(label in true)
            found[label][1].append(score)
        label, score = max(by_class.items(), key=lambda item: item[1])
        best[0].append(label in true)
        best[1].append(score)
    counts = Counter(label for labels in truth for label in labels)
    all_hits = [hit for hits, _ in found.values() for hit in hits]
    all_scores = [score for _, values in found.values() for score in values]
    lines = [(_Line.of(*found[label], positives), label) for label, positives in counts.items()]
    lines.sort(key=lambda line: (line[0].average, line[1]))
    return [
        precision_recall(all_hits, all_scores, label="all classes", positives=counts.total()),
        *(line.curve("Precision and recall", label) for line, label in lines[:MOST_CLASSES]),
        *reliability(best[1], best[0]),
    ]


@dataclass(frozen=True)
class _Line:
    recall: np.ndarray
    """Rising, float64 [points]."""
    precision: np.ndarray
    average: float

    @classmethod
    def of(cls, hits: Sequence[bool] | np.ndarray, scores: Numbers, positives: int | None) -> _Line:
        found, values = np.asarray(hits, dtype=np.float64), np.asarray(scores, dtype=np.float64)
        total = float(found.sum()) if positives is None else positives
        if not total or not len(found):
            return cls(np.zeros(0), np.zeros(0), 0.0)
        order = np.argsort(-values, kind="stable")
        # Things of one score are found at once: only the last of them counts.
        last = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
        right = np.cumsum(found[order])[last]
        recall, precision = right / total, right / (last + 1)
        return cls(recall, precision, float(np.sum(np.diff(recall, prepend=0.0) * precision)))

    def curve(self, title: str, label: str) -> Curve:
        x, y = self.recall, self.precision
        if len(x):
            # Of the points with one recall the first is the most precise; those behind it only add mistakes.
            chosen = np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], MOST_POINTS)))
            x, y = x[chosen], y[chosen]
        return Curve(
            title=title,
            x_label="recall",
            y_label="precision",
            x=x.tolist(),
            y=y.tolist(),
            label=f"{label} · AP {self.average:.3f}",
        )
