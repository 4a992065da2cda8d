"""Whether one version is better than another: what looks decide, and how often they err."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest

from luthier import comparison
from luthier.comparison import Labelled

MOST = 1600
"""Labels of a side after which a simulated rollout is given up: six looks."""


def judged(stable: Labelled, candidate: Labelled, look: int = 1, *, lower_is_better: bool = False) -> int:
    """1: the candidate is better, -1: it is worse, 0: undecided."""
    found = comparison.difference(
        *comparison.estimates(stable, candidate, seed=look),
        alpha=comparison.spent(0.05, look),
        lower_is_better=lower_is_better,
    )
    return (found.lower > 0) - (found.upper < 0)


def rollout(draw: np.random.Generator, right: float, candidate_right: float, split: float = 0.5) -> tuple[int, int]:
    """What a rollout with labels that come in by and by is decided as, and after how many of the candidate."""
    stable: list[float] = []
    candidate: list[float] = []
    look, size = 0, 50
    while size <= MOST:
        look += 1
        others = int(size * (1 - split) / split)
        stable += (draw.random(others - len(stable)) < right).astype(float).tolist()
        candidate += (draw.random(size - len(candidate)) < candidate_right).astype(float).tolist()
        if decided := judged(alone(stable), alone(candidate), look):
            return decided, size
        size *= 2
    return 0, MOST


def alone(values: list[float]) -> Labelled:
    return Labelled(values, [""] * len(values))


@pytest.mark.parametrize(("right", "split"), [(0.6, 0.5), (0.9, 0.5), (0.98, 0.5), (0.9, 0.1)])
def test_equal_versions_stay_undecided(right: float, split: float) -> None:
    """However often one looks: of 200 pairs at most 5 % are decided."""
    draw = np.random.default_rng(7)
    decided = [rollout(draw, right, right, split)[0] for _ in range(200)]
    assert sum(map(abs, decided)) <= 10


def test_what_differs_is_found_out() -> None:
    """Ten points of accuracy: decided rightly each time, half of the times with 400 labels a side or fewer."""
    draw = np.random.default_rng(7)
    worse = [rollout(draw, 0.8, 0.7) for _ in range(50)]
    better = [rollout(draw, 0.7, 0.8) for _ in range(50)]
    assert [decided for decided, _ in worse] == [-1] * 50
    assert [decided for decided, _ in better] == [1] * 50
    assert np.median([size for _, size in [*worse, *better]]) <= 800


def test_one_look_at_many_confidences_spends_no_more_than_all() -> None:
    assert comparison.spent(0.05, 1) == 0.025
    assert sum(comparison.spent(0.05, look) for look in range(1, 10_000)) < 0.05


def test_a_side_on_which_all_was_right_is_not_certain() -> None:
    """50 of 50 against 931 of 950: as even a fair coin of 98 % falls in a third of the cases."""
    assert judged(alone([1.0] * 931 + [0.0] * 19), alone([1.0] * 50)) == 0
    assert judged(alone([1.0] * 50), alone([1.0] * 50)) == 0


def test_predictions_of_one_caller_count_as_one() -> None:
    """Two callers with a thousand predictions each say less than a thousand callers with two."""
    values = [1.0] * 1000 + [0.0] * 1000
    many, few = [str(i // 2) for i in range(2000)], [str(i // 1000) for i in range(2000)]
    wide, narrow = comparison.estimate(Labelled(values, few)), comparison.estimate(Labelled(values, many))
    assert (wide.value, narrow.value) == (0.5, 0.5)
    assert narrow.upper - narrow.lower < 0.08
    assert wide.upper - wide.lower > 0.5


def test_intervals_cover() -> None:
    """Of 95 % intervals, about 95 % hold the truth."""
    draw = np.random.default_rng(7)
    held = 0
    for seed in range(300):
        found = comparison.estimate(alone((draw.random(100) < 0.9).astype(float).tolist()), seed)
        held += found.lower <= 0.9 <= found.upper
    assert 0.92 <= held / 300 <= 0.99


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_a_metric_that_is_scored_anew(lower_is_better: bool) -> None:
    """A root of a mean, of each sample as a whole: two apart are told apart, and in which direction."""

    def side(values: list[float]) -> Labelled:
        return Labelled(values, [""] * len(values), lambda places: fmean(values[p] ** 2 for p in places) ** 0.5)

    draw = np.random.default_rng(7)
    low, high = side(draw.normal(1, 0.3, 100).tolist()), side(draw.normal(1.5, 0.3, 100).tolist())
    assert judged(low, high, lower_is_better=lower_is_better) == (-1 if lower_is_better else 1)
    assert judged(high, low, lower_is_better=lower_is_better) == (1 if lower_is_better else -1)
    assert judged(low, low, lower_is_better=lower_is_better) == 0
    estimate = comparison.estimate(low)
    assert estimate.lower < estimate.value < estimate.upper
    assert estimate.value == pytest.approx(1.04, abs=0.1)
