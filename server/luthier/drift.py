"""Whether live inputs and predictions are still those that a model was proven on.

A profile keeps the facts (`Task.features`) of the test part and of the served bundle's own predictions for it, in a
bounded size. A window of live predictions is compared with it, fact by fact: numbers by the two-sample
Kolmogorov-Smirnov test, categories by the chi-square test with the population stability index as its size, and bags of
words by how frequent their words were, which is a number. A window raises an alarm where Holm's rule finds a fact too
unlikely at the error that all facts share, and the fact moved far enough to matter.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.errors import FailedPrecondition
from luthier.v1.monitoring_pb2 import Calibration, CategoryShare, Drift, FeatureDrift, ReliabilityBin

Value = float | str | Sequence[str]
Facts = Mapping[str, Value]
Array = npt.NDArray[np.float64]

PROFILE_FILE = "profile.json"
"""The file of a bundle that holds its profile."""
FORMAT = 1
FAMILY_ERROR = 0.01
"""How likely a window without drift raises an alarm."""
LEAST_WINDOW = 50
"""Fewer predictions tell nothing; fewer values of a fact leave that fact out."""
LEAST_DISTANCE = 0.1
"""A Kolmogorov-Smirnov distance below it raises no alarm, however sure it is: a tenth of the inputs moved at most."""
LEAST_INDEX = 0.1
"""The same of the population stability index: from 0.1 on a shift is called moderate, from 0.25 on large (Siddiqi
2006)."""
MOST_VALUES = 512
MOST_CATEGORIES = 256
MOST_WORDS = 4096
MOST_SHARES = 20
OTHER = "(other)"
_LEAST_EXPECTED = 5.0
"""Categories that are expected less often are counted together, as the chi-square test wants it (Cochran 1954)."""
_BINS = 10


def profile_of(facts: Sequence[Facts]) -> dict[str, Any]:
    """What is kept of the facts of the test part, as JSON: at most MOST_VALUES numbers or MOST_CATEGORIES a fact."""
    features = {name: _summary(values) for name, values in _columns(facts).items() if len(values) >= 2}
    return {"format": FORMAT, "num_examples": len(facts), "features": features}


def save(profile: Mapping[str, Any], directory: Path) -> None:
    """Writes a profile into the folder of a bundle."""
    (directory / PROFILE_FILE).write_text(json.dumps(profile, sort_keys=True, allow_nan=False), encoding="utf-8")


def load(directory: Path, version: str) -> dict[str, Any]:
    """Reads the profile of a bundle; raises FailedPrecondition where it has none, or a newer Luthier's."""
    try:
        profile: dict[str, Any] = json.loads((directory / PROFILE_FILE).read_bytes())
    except FileNotFoundError as error:
        raise FailedPrecondition(
            f"{version} was published without a profile, so there is nothing to compare with; tune it again on data "
            "with a test part, and the next version has one"
        ) from error
    if profile["format"] > FORMAT:
        raise FailedPrecondition(f"the profile of {version} is of a newer Luthier; update the server")
    return profile


def compare(profile: Mapping[str, Any], facts: Sequence[Facts], error: float = FAMILY_ERROR) -> Drift:
    """Fills verdict, features and number of predictions; `error` is shared by all facts."""
    drift = Drift(num_predictions=len(facts), family_error=error, verdict=Drift.VERDICT_TOO_FEW)
    if len(facts) < LEAST_WINDOW:
        return drift
    columns = _columns(facts)
    found = [
        _compared(name, kept, columns[name])
        for name, kept in profile["features"].items()
        if len(columns.get(name, ())) >= LEAST_WINDOW
    ]
    found.sort(key=lambda one: (one.p_value, -one.value, one.name))
    for rank, one in enumerate(found):
        # Holm 1979: the first that is likely enough ends the search.
        if one.p_value * (len(found) - rank) > error:
            break
        one.alarm = one.value >= (LEAST_DISTANCE if one.statistic == "ks" else LEAST_INDEX)
    found.sort(key=lambda one: not one.alarm)
    drift.verdict = Drift.VERDICT_ALARM if any(one.alarm for one in found) else Drift.VERDICT_STEADY
    drift.features.extend(found)
    return drift


def calibration_of(confidences: Iterable[tuple[float, bool]]) -> Calibration | None:
    """The expected calibration error over ten bins of equal width (Guo et al. 2017), from pairs of a confidence between
    0 and 1 and whether the prediction is right; None without pairs."""
    pairs = np.array([(confidence, right) for confidence, right in confidences], dtype=np.float64).reshape(-1, 2)
    if not len(pairs):
        return None
    numbers = np.minimum((pairs[:, 0] * _BINS).astype(int), _BINS - 1)
    bins = []
    for number in np.unique(numbers):
        confidence, accuracy = pairs[numbers == number].mean(axis=0)
        bins.append(ReliabilityBin(count=int((numbers == number).sum()), confidence=confidence, accuracy=accuracy))
    error = sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / len(pairs)
    return Calibration(expected_error=error, bins=bins)


def _columns(facts: Sequence[Facts]) -> dict[str, list[Value]]:
    """The values of each fact; an input that lacks a fact, or has no number where one should be, is left out of it."""
    columns: dict[str, list[Value]] = {}
    for row in facts:
        for name, value in row.items():
            if isinstance(value, str | Sequence) or math.isfinite(value):
                columns.setdefault(name, []).append(value)
    return columns


def _summary(values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(values[0], str):
        counts = Counter(values)
        kept = dict(counts.most_common(MOST_CATEGORIES))
        return {"kind": "category", "count": len(values), "counts": kept}
    if isinstance(values[0], Sequence):
        return _bag_summary([frozenset(words) for words in values])
    return {"kind": "number", "count": len(values), "values": _sketch(np.array(values, dtype=np.float64))}


def _bag_summary(bags: Sequence[frozenset[str]]) -> dict[str, Any]:
    """In how many bags each frequent word is, and how frequent the words of each bag are among the other bags.

    Every bag is left out of its own measure, or its own rare words would look known, and those of any window strange.
    Words that are in fewer bags than the rarest that is kept count as if they were in none, in profile and window.
    """
    counts = Counter(word for bag in bags for word in bag)
    frequent = sorted(((count, word) for word, count in counts.items() if count > 1), key=lambda one: (-one[0], one[1]))
    floor = max(2, frequent[MOST_WORDS][0] + 1) if len(frequent) > MOST_WORDS else 2
    kept = {word: count for count, word in frequent if count >= floor}
    familiar = _familiarity(bags, kept, floor, own=1)
    return {"kind": "words", "count": len(familiar), "values": _sketch(familiar), "floor": floor, "words": kept}


def _familiarity(bags: Iterable[Iterable[str]], counts: Mapping[str, int], floor: int, own: int = 0) -> Array:
    """For each bag with words, the mean over them of how many times `floor` bags have the word, as a logarithm."""
    logs = {word: math.log(max(count - own, floor) / floor) + (count - own >= floor) for word, count in counts.items()}
    return np.array([np.mean([logs.get(word, 0.0) for word in words]) for bag in bags if (words := frozenset(bag))])


def _sketch(values: Array) -> list[float]:
    """The values in order, or as many quantiles of them as are kept."""
    ordered = np.sort(values)
    if len(ordered) > MOST_VALUES:
        ordered = np.quantile(ordered, (np.arange(MOST_VALUES) + 0.5) / MOST_VALUES)
    return [float(f"{value:.6g}") for value in ordered]


def _compared(name: str, kept: Mapping[str, Any], values: Sequence[Any]) -> FeatureDrift:
    if kept["kind"] == "category":
        return _of_categories(name, kept, Counter(str(value) for value in values))
    if kept["kind"] == "words":
        numbers = _familiarity([value for value in values if not isinstance(value, str)], kept["words"], kept["floor"])
    else:
        numbers = np.array([float(f"{value:.6g}") for value in values if isinstance(value, float | int)], np.float64)
    return _of_numbers(name, np.array(kept["values"]), kept["count"], numbers, below=kept["kind"] == "words")


def _of_numbers(name: str, reference: Array, count: int, window: Array, *, below: bool) -> FeatureDrift:
    """The two-sample Kolmogorov-Smirnov test; p by the limiting distribution with Stephens' correction (1970).

    Where it is for values `below` those of the profile alone, its one-sided form: the words of an input that the
    profile itself was made of are more familiar than others, which is no drift.
    """
    from scipy.special import kolmogorov

    if len(window) < LEAST_WINDOW:
        return FeatureDrift(name=name, statistic="ks", p_value=1.0, num_values=len(window))
    places = np.concatenate([reference, window])
    shares = [np.searchsorted(np.sort(side), places, side="right") / len(side) for side in (reference, window)]
    further = shares[1] - shares[0]
    distance = float(max(further.max(), 0.0) if below else np.abs(further).max())
    root = math.sqrt(count * len(window) / (count + len(window)))
    scaled = (root + 0.12 + 0.11 / root) * distance
    deciles = np.linspace(0, 1, 11)
    return FeatureDrift(
        name=name,
        statistic="ks",
        value=distance,
        p_value=math.exp(-2 * scaled**2) if below else float(kolmogorov(scaled)),
        reference_deciles=np.quantile(reference, deciles),
        window_deciles=np.quantile(window, deciles),
        num_values=len(window),
    )


def _of_categories(name: str, kept: Mapping[str, Any], window: Counter[str]) -> FeatureDrift:
    """The population stability index, each count half a one higher so that no share is 0; p by chi-square."""
    from scipy.special import chdtrc

    sides = (Counter(kept["counts"]), window)
    totals = np.array([kept["count"], window.total()], dtype=np.float64)
    sides[0][OTHER] += kept["count"] - sides[0].total()
    names = _frequent(sides, totals)
    counts = np.array([[side[one] for one in names] for side in sides], dtype=np.float64)
    rest = totals - counts.sum(axis=1)
    if rest.any():
        names, counts = [*names, OTHER], np.column_stack([counts, rest])
    expected = totals[:, None] * counts.sum(axis=0) / totals.sum()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    shares = (counts + 0.5) / (totals[:, None] + 0.5 * len(names))
    index = float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
    order = sorted(range(len(names)), key=lambda i: -max(counts[:, i] / totals))[:MOST_SHARES]
    return FeatureDrift(
        name=name,
        statistic="psi",
        value=index,
        p_value=float(chdtrc(len(names) - 1, chi_square)) if len(names) > 1 else 1.0,
        shares=[
            CategoryShare(category=names[i], reference=counts[0, i] / totals[0], window=counts[1, i] / totals[1])
            for i in order
        ],
        num_values=window.total(),
    )


def _frequent(sides: Sequence[Counter[str]], totals: Array) -> list[str]:
    """The categories that both sides would have often enough if they were alike, but for the last of them where all
    others together are not frequent enough to be counted as one."""
    least = float(totals.min() / totals.sum())
    both = {name: count for name, count in (sides[0] + sides[1]).items() if name != OTHER}
    ordered = sorted(both, key=lambda name: (-both[name], name))
    often = [name for name in ordered if both[name] * least >= _LEAST_EXPECTED]
    rest = float(totals.sum()) - sum(both[name] for name in often)
    while often and 0 < rest * least < _LEAST_EXPECTED:
        rest += both[often.pop()]
    return often
