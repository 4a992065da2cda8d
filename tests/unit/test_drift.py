"""Comparing windows of facts with a profile: the statistics themselves, how often they err, and what they see."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from luthier import drift
from luthier.errors import FailedPrecondition
from luthier.v1.monitoring_pb2 import Drift, FeatureDrift

ALARM, STEADY = Drift.VERDICT_ALARM, Drift.VERDICT_STEADY
TOPICS = {
    "bank": (
        "card",
        "payment",
        "transfer",
        "account",
        "balance",
        "refund",
        "charge",
        "cash",
        "pin",
        "limit",
        "fee",
        "rate",
    ),
    "garden": ("soil", "seed", "water", "sun", "leaf", "root", "rose", "hedge", "mulch", "prune", "weed", "spade"),
}
COMMON = ("the", "a", "of", "to", "in", "my", "is", "it", "was", "i", "for", "on", "that", "with", "not", "can", "have")


def only(found: Drift) -> FeatureDrift:
    [feature] = found.features
    return feature


def numbers(values: Any) -> list[dict[str, Any]]:
    return [{"x": float(value)} for value in values]


def sentence(draw: random.Random, topic: str) -> dict[str, Any]:
    words = draw.choices(COMMON, k=draw.randint(3, 9)) + draw.choices(TOPICS[topic], k=draw.randint(2, 6))
    return {"vocabulary": words, "words": float(len(words))}


def example(draw: random.Random) -> dict[str, Any]:
    """Facts of every kind, some with ties, one that is seldom there."""
    facts = {
        **sentence(draw, "bank"),
        "brightness": draw.betavariate(4, 3),
        "objects": float(draw.choices(range(6), (30, 20, 20, 15, 10, 5))[0]),
        "confidence": 1 - draw.expovariate(9) % 1,
        "predicted": draw.choices("abcdefgh", (40, 20, 15, 10, 6, 5, 3, 1))[0],
        "constant": 1.0,
    }
    if draw.random() < 0.7:
        facts["score"] = draw.gauss(0.4, 0.1)
    return facts


# The statistics.


@pytest.mark.parametrize(("shift", "sizes"), [(0.0, (300, 80)), (0.3, (300, 80)), (1.0, (90, 500))])
def test_numbers_are_compared_as_scipy_does(shift: float, sizes: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=sizes[0]).round(3), draw.normal(shift, size=sizes[1]).round(3)
    found = only(drift.compare(drift.profile_of(numbers(one)), numbers(other)))
    theirs = stats.ks_2samp(one, other)
    assert found.value == pytest.approx(theirs.statistic, abs=1e-9)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=0.2)
    assert list(found.window_deciles) == pytest.approx(np.quantile(other, np.linspace(0, 1, 11)))


def test_a_profile_of_many_numbers_is_their_quantiles() -> None:
    values = np.random.default_rng(1).normal(size=50_000)
    other = np.random.default_rng(2).normal(0.4, size=400)
    profile = drift.profile_of(numbers(values))
    assert len(profile["features"]["x"]["values"]) == drift.MOST_VALUES
    found = only(drift.compare(profile, numbers(other)))
    assert found.value == pytest.approx(stats.ks_2samp(values, other).statistic, abs=0.002)
    assert found.num_values == 400


def test_categories_are_compared_by_chi_square_and_the_stability_index() -> None:
    before, now = {"a": 600, "b": 300, "c": 100}, {"a": 40, "b": 30, "c": 30}
    profile = drift.profile_of([{"k": name} for name, count in before.items() for _ in range(count)])
    found = only(drift.compare(profile, [{"k": name} for name, count in now.items() for _ in range(count)]))
    table = np.array([[600, 300, 100], [40, 30, 30]])
    assert found.statistic == "psi"
    assert found.p_value == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue, rel=1e-6)
    exact = 0.2 * math.log(0.6 / 0.4) + 0.2 * math.log(0.3 / 0.1)
    assert found.value == pytest.approx(exact, rel=0.03)
    assert {share.category: round(share.window, 2) for share in found.shares} == {"a": 0.4, "b": 0.3, "c": 0.3}
    assert found.alarm


def test_rare_and_unknown_categories_are_counted_together() -> None:
    draw = random.Random(0)
    rare = [{"k": f"rare{draw.randrange(500)}"} for _ in range(100)]
    profile = drift.profile_of([*({"k": "usual"} for _ in range(900)), *rare])
    assert len(profile["features"]["k"]["counts"]) == drift.MOST_CATEGORIES or len(set(map(str, rare))) < 256
    same = [*({"k": "usual"} for _ in range(180)), *({"k": f"new{n}"} for n in range(20))]
    assert drift.compare(profile, same).verdict == STEADY
    strange = [*({"k": "usual"} for _ in range(100)), *({"k": "new"} for _ in range(100))]
    found = only(drift.compare(profile, strange))
    assert found.alarm
    assert {share.category: share.window for share in found.shares}["new"] == 0.5


def test_words_of_another_domain_are_unfamiliar_and_those_of_the_profile_itself_no_drift() -> None:
    draw = random.Random(0)
    texts = [{"v": sentence(draw, "bank")["vocabulary"]} for _ in range(300)]
    profile = drift.profile_of(texts)
    assert drift.compare(profile, draw.sample(texts, 120)).verdict == STEADY
    others = [{"v": sentence(draw, "garden")["vocabulary"]} for _ in range(120)]
    found = only(drift.compare(profile, others))
    assert found.alarm
    assert found.value > 0.5


# How often they err.


@pytest.mark.parametrize("size", [50, 100, 400])
def test_windows_without_drift_raise_few_alarms(size: int) -> None:
    """Windows of the half that the profile was not made of: at most 5 of 100, where about 1 is expected."""
    alarms = 0
    for seed in range(4):
        draw = random.Random(seed)
        profile = drift.profile_of([example(draw) for _ in range(600)])
        held = [example(draw) for _ in range(1500)]
        alarms += sum(drift.compare(profile, draw.sample(held, size)).verdict == ALARM for _ in range(25))
    assert alarms <= 5


@pytest.mark.parametrize("examples", [60, 600])
def test_windows_drawn_again_from_the_profile_itself_raise_few_alarms(examples: int) -> None:
    draw = random.Random(examples)
    facts = [example(draw) for _ in range(examples)]
    profile = drift.profile_of(facts)
    alarms = sum(drift.compare(profile, draw.choices(facts, k=100)).verdict == ALARM for _ in range(100))
    assert alarms <= 5


def test_the_error_is_shared_by_all_facts() -> None:
    """Of 60 facts without drift one of 0.01 each would be found in every second window."""
    draw = np.random.default_rng(3)
    profile = drift.profile_of([dict(zip(map(str, range(60)), draw.normal(size=60), strict=True)) for _ in range(300)])
    windows = draw.normal(size=(100, 150, 60))
    found = [
        drift.compare(profile, [dict(zip(map(str, range(60)), row, strict=True)) for row in window])
        for window in windows
    ]
    least = [min(feature.p_value for feature in one.features) for one in found]
    assert sum(p <= drift.FAMILY_ERROR for p in least) > 20
    assert sum(one.verdict == ALARM for one in found) <= 5


def test_a_shift_too_small_to_matter_raises_none_however_sure_it_is() -> None:
    draw = np.random.default_rng(0)
    profile = drift.profile_of(numbers(draw.normal(size=100_000)))
    found = only(drift.compare(profile, numbers(draw.normal(0.1, size=20_000))))
    assert found.p_value < 1e-10
    assert found.value < drift.LEAST_DISTANCE
    assert not found.alarm


# What they see.


def darker(facts: dict[str, Any]) -> dict[str, Any]:
    return {**facts, "brightness": facts["brightness"] * 0.6}


def surer(facts: dict[str, Any]) -> dict[str, Any]:
    return {**facts, "confidence": 1.0}


def other_classes(facts: dict[str, Any]) -> dict[str, Any]:
    return {**facts, "predicted": {"a": "c", "b": "h"}.get(facts["predicted"], facts["predicted"])}


@pytest.mark.parametrize(
    ("change", "feature"), [(darker, "brightness"), (surer, "confidence"), (other_classes, "predicted")]
)
def test_what_moved_is_named_first(change: Callable[[dict[str, Any]], dict[str, Any]], feature: str) -> None:
    draw = random.Random(5)
    profile = drift.profile_of([example(draw) for _ in range(600)])
    found = drift.compare(profile, [change(example(draw)) for _ in range(150)])
    assert found.verdict == ALARM
    assert [one.name for one in found.features if one.alarm] == [feature]
    assert found.features[0].name == feature


def test_a_small_window_tells_nothing() -> None:
    draw = random.Random(0)
    profile = drift.profile_of([example(draw) for _ in range(100)])
    found = drift.compare(profile, [darker(example(draw)) for _ in range(drift.LEAST_WINDOW - 1)])
    assert found.verdict == Drift.VERDICT_TOO_FEW
    assert not found.features
    seldom = [{**facts, "score": 99.0} if n < 20 else facts for n, facts in enumerate(found_without_score(draw))]
    assert "score" not in [one.name for one in drift.compare(profile, seldom).features]


def found_without_score(draw: random.Random) -> list[dict[str, Any]]:
    return [{name: value for name, value in example(draw).items() if name != "score"} for _ in range(100)]


def test_numbers_that_are_none_are_left_out() -> None:
    profile = drift.profile_of([{"x": math.nan}, {"x": math.inf}, *numbers(range(100))])
    assert profile["features"]["x"]["count"] == 100
    json.dumps(profile, allow_nan=False)
    facts: list[dict[str, Any]] = [*numbers(range(100)), {"x": math.nan}, {"y": 1.0}, {"x": "text"}]
    found = drift.compare(profile, facts)
    assert only(found).num_values == 100


# Profiles.


def test_a_profile_is_bounded() -> None:
    draw = random.Random(0)
    words = [f"word{n}" for n in range(50_000)]
    facts = [{"n": draw.random(), "k": draw.choice(words), "v": draw.sample(words, 30)} for _ in range(5_000)]
    text = json.dumps(drift.profile_of(facts))
    assert len(text) < 150_000


def test_a_profile_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    draw = random.Random(0)
    profile = drift.profile_of([example(draw) for _ in range(100)])
    drift.save(profile, tmp_path)
    assert drift.load(tmp_path, "models/beer/versions/1") == profile


def test_who_has_no_profile_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="tune it again on data with a test part"):
        drift.load(tmp_path, "models/beer/versions/1")
    drift.save({"format": drift.FORMAT + 1}, tmp_path)
    with pytest.raises(FailedPrecondition, match="update the server"):
        drift.load(tmp_path, "models/beer/versions/1")


# Calibration.


def test_calibration_counts_bins_by_their_predictions() -> None:
    pairs = [(0.95, n < 80) for n in range(100)] + [(0.55, n < 6) for n in range(10)] + [(1.0, True)]
    found = drift.calibration_of(pairs)
    assert found is not None
    assert [one.count for one in found.bins] == [10, 101]
    assert found.bins[0].accuracy == pytest.approx(0.6)
    expected = (10 * abs(0.55 - 0.6) + 101 * abs((95 + 1) / 101 - 81 / 101)) / 111
    assert found.expected_error == pytest.approx(expected)
    assert drift.calibration_of([]) is None
