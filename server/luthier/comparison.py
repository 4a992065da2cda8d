"""Whether one version is better than another, by labels that come one after the other.

Intervals come from the bootstrap over callers: predictions of one caller hang together, so that a caller is drawn with
all of its own (Davison and Hinkley 1997, Bootstrap Methods and their Application, 3.8). To each side one caller is
added who had the best prediction of either side and one who had the worst, as Agresti and Caffo (2000, The American
Statistician 54) do for proportions: without them a side on which all was right would have no error at all.

The difference is judged by its bootstrap standard error (Efron and Tibshirani 1993, An Introduction to the Bootstrap,
ch. 13) at looks whose number is not fixed. Look k may err with the probability `alpha / (k (k + 1))`, which sums up to
alpha over all looks, however many follow: an alpha-spending rule (Lan and DeMets 1983, Biometrika 70) under the union
bound, valid for looks that depend on one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

REPLICATES = 2000
"""Samples of the bootstrap where values are averaged."""
SCORED_REPLICATES = 200
"""Samples where each has to be scored anew; enough for a standard error (Efron and Tibshirani 1993, 6.4)."""
_CHUNK = 2**22
CONFIDENCE = 0.95
"""Of the interval of each side's value."""


@dataclass(frozen=True)
class Labelled:
    """The predictions of a version that have feedback."""

    values: Sequence[float]
    """The metric of each alone."""
    callers: Sequence[str]
    """Whose each is; empty: nobody else's."""
    score: Callable[[Sequence[int]], float] | None = None
    """The metric of some of them together, by their places, which may be repeated; None: the mean of their values."""

    @property
    def groups(self) -> list[list[int]]:
        """The places of each caller's predictions."""
        found: dict[object, list[int]] = {}
        for place, caller in enumerate(self.callers):
            found.setdefault(caller or place, []).append(place)
        return list(found.values())


@dataclass(frozen=True)
class Estimate:
    """A side's metric, with the interval that 95 of 100 such intervals hold the truth in."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Difference:
    """By how much the candidate is better; below 0 where it is worse."""

    value: float
    lower: float
    upper: float
    confidence: float


def estimates(stable: Labelled, candidate: Labelled, seed: int = 0) -> tuple[Estimate, Estimate, Floats, Floats]:
    """Both sides' metrics with percentile intervals, and the samples behind them. Neither side may be empty."""
    both = [*stable.values, *candidate.values]
    worst, best = min(both), max(both)
    found = []
    for number, side in enumerate((stable, candidate)):
        found.append(_resampled(side, worst, best, np.random.default_rng([seed, number])))
    (of_stable, samples), (of_candidate, others) = found
    return of_stable, of_candidate, samples, others


def estimate(side: Labelled, seed: int = 0) -> Estimate:
    """One side's metric by itself."""
    return estimates(side, side, seed)[0]


def difference(
    stable: Estimate, candidate: Estimate, samples: Floats, others: Floats, *, alpha: float, lower_is_better: bool
) -> Difference:
    """The candidate's advantage with the interval that errs with the probability alpha."""
    sign = -1.0 if lower_is_better else 1.0
    middle = sign * float(others.mean() - samples.mean())
    error = float(np.hypot(samples.std(ddof=1), others.std(ddof=1)))
    reach = NormalDist().inv_cdf(1 - alpha / 2) * error
    return Difference(sign * (candidate.value - stable.value), middle - reach, middle + reach, 1 - alpha)


def spent(alpha: float, look: int) -> float:
    """The part of alpha that look 1, 2, … may err with."""
    return alpha / (look * (look + 1))


def _resampled(side: Labelled, worst: float, best: float, draw: np.random.Generator) -> tuple[Estimate, Floats]:
    if side.score is None:
        values = np.asarray(side.values, dtype=np.float64)
        sums, counts = _by_caller(values, side.callers)
        size = len(values) / len(sums)
        sums = np.append(sums, [worst * size, best * size])
        counts = np.append(counts, [size, size])
        samples = _means(sums, counts, draw)
        value = float(values.mean())
    else:
        samples = _scores(side, draw)
        value = side.score(range(len(side.values)))
    tail = (1 - CONFIDENCE) / 2
    lower, upper = np.quantile(samples, [tail, 1 - tail])
    return Estimate(value, min(float(lower), value), max(float(upper), value)), samples


def _means(sums: Floats, counts: Floats, draw: np.random.Generator) -> Floats:
    """Means of samples of the groups, as many as there are."""
    size = len(sums)
    kinds, numbers = np.unique(np.column_stack([sums, counts]), axis=0, return_counts=True)
    if 8 * len(kinds) <= size:
        # As right and wrong: how often each kind of group is drawn is enough to know.
        drawn = draw.multinomial(size, numbers / size, REPLICATES) @ kinds
        return drawn[:, 0] / drawn[:, 1]
    at_once = max(1, _CHUNK // size)
    parts = []
    for start in range(0, REPLICATES, at_once):
        chosen = draw.integers(0, size, (min(at_once, REPLICATES - start), size))
        parts.append(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1))
    return np.concatenate(parts)


def _by_caller(values: Floats, callers: Sequence[str]) -> tuple[Floats, Floats]:
    """Of each caller, the sum of the values and how many they are."""
    whose = np.asarray(callers, dtype=object)
    keyed = whose != ""
    _, of = np.unique(whose[keyed].astype(str), return_inverse=True)
    alone = values[~keyed]
    sums = np.concatenate([alone, np.bincount(of, values[keyed])])
    return sums, np.concatenate([np.ones(len(alone)), np.bincount(of)]).astype(np.float64)


def _scores(side: Labelled, draw: np.random.Generator) -> Floats:
    assert side.score is not None
    groups = side.groups
    scores = []
    for _ in range(SCORED_REPLICATES):
        chosen = draw.integers(0, len(groups), len(groups))
        scores.append(side.score([place for group in chosen for place in groups[group]]))
    return np.array(scores)
