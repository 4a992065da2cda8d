"""Which bases to start from: a few plain rules over what is recorded of each, stated in docs/bases.md.

All figures of speed are estimates from multiply-accumulates. They order bases and keep off those that are far from a
budget; what a model takes is measured when it is tuned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.entries import Entry

GMACS_PER_S = 25.0
"""Billions of multiply-accumulates a second on one core. onnxruntime on a 2-core x86 machine with AVX2 did 10 to 35 at
batch 1: depthwise convolutions are at the low end, matrix products at the high one."""
EPOCHS = 10
"""Of the training that is estimated."""
BACKWARD = 3
"""A step of training against a prediction: the backward pass costs about twice the forward one."""
PATIENCE_S = 3600.0
"""Bases that train longer, by estimate, stand behind those that do not."""
ASSUMED_EXAMPLES = 1000
"""Where no data set is named."""
TOKENS = 128
"""Length of the text that the multiply-accumulates of encoders are recorded for."""
CHARACTERS_PER_TOKEN = 4
STRIDE = 32
"""Sides of images are multiples of it."""
_QUANTILES = {"width_pixels": "p50", "height_pixels": "p50", "text_characters": "p90"}
"""Statistics that tasks give of their data, and which of their quantiles counts."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a base is wanted for; 0 and the empty string: not known, or no limit."""

    task: str
    num_examples: int = 0
    size: int = 0
    """Pixels of an image's side or tokens of a text: as it will be with `exact_size`, else the most in the data."""
    exact_size: bool = False
    max_latency_ms: float = 0.0
    max_size_mb: float = 0.0
    language: str = ""
    greyscale: bool = False


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A base, what it would cost by estimate, and why it stands where it stands."""

    entry: Entry
    latency_ms: float
    training_s: float
    reasons: list[str]


def suggest(entries: Iterable[Entry], needs: Needs) -> tuple[list[Suggestion], dict[str, str]]:
    """Returns the bases for a task, the best first, and why each other one for it was left out, by id.

    Within the budgets and of the right language, in this order: those that train within the hour; a team's own; whole
    models that were trained for the task itself; the more accurate where they were published (of text, where no figure
    is common to all, the larger).
    """
    found: list[Suggestion] = []
    rejected: dict[str, str] = {}
    for entry in entries:
        if needs.task not in entry.tasks:
            continue
        suggestion = _estimated(entry, needs)
        if reason := _obstacle(suggestion, needs):
            rejected[entry.id] = reason
        else:
            found.append(suggestion)
    return sorted(found, key=_rank), rejected


def size_of(statistics: Mapping[str, Any]) -> int:
    """Side in pixels of the median image, or tokens of a long text, by a data set's statistics; 0: they lack it."""
    found: dict[str, float] = {
        key: statistics[key].get(quantile, 0) for key, quantile in _QUANTILES.items() if key in statistics
    }
    side = max(found.get("width_pixels", 0), found.get("height_pixels", 0))
    return math.ceil(side or found.get("text_characters", 0) / CHARACTERS_PER_TOKEN)


def is_grey(statistics: Mapping[str, Any]) -> bool:
    """Whether most images of a data set are grey, by its statistics."""
    return bool(statistics.get("grey_share", 0) > 0.5)


def _estimated(entry: Entry, needs: Needs) -> Suggestion:
    size, gmacs = _cost(entry, needs)
    latency_ms = 1000 * gmacs / GMACS_PER_S
    num_examples = needs.num_examples or ASSUMED_EXAMPLES
    training_s = EPOCHS * num_examples * BACKWARD * gmacs / GMACS_PER_S
    reasons = [*_merits(entry, needs)]
    if gmacs:
        reasons.append(f"about {_figure(latency_ms)} ms a prediction on one core at {size}")
        examples = f"{num_examples} examples" if needs.num_examples else f"an assumed {num_examples} examples"
        slow = ", over an hour, so it stands behind the quicker ones" if training_s > PATIENCE_S else ""
        reasons.append(f"about {_time(training_s)} for {EPOCHS} epochs of {examples} on one core{slow}")
    reasons.append(f"{_figure(entry.weights_bytes / 1e6)} MB of weights")
    return Suggestion(entry=entry, latency_ms=latency_ms, training_s=training_s, reasons=reasons)


def _cost(entry: Entry, needs: Needs) -> tuple[str, float]:
    """The size of the input in words, and the multiply-accumulates for one of it; 0 where those are not known."""
    if entry.preprocessing is None:
        tokens = needs.size or TOKENS
        return f"{tokens} tokens", entry.gmacs * tokens / TOKENS
    height, width = entry.preprocessing.input_size
    if needs.size and (needs.exact_size or needs.size < min(height, width)):
        side = math.ceil(needs.size / STRIDE) * STRIDE
        return f"{side}x{side} pixels", entry.gmacs * side * side / (height * width)
    return f"{height}x{width} pixels", entry.gmacs


def _merits(entry: Entry, needs: Needs) -> Iterable[str]:
    if entry.imported:
        yield "your own checkpoint"
    if entry.library == "torchvision":
        yield "a whole model, trained for this task"
    if published := entry.published:
        yield f"{published.metric} {published.value:.3g} ({published.source})"
    if needs.language:
        yield f"reads {needs.language}" if entry.languages else f"whether it reads {needs.language} is not stated"
    if needs.greyscale and entry.preprocessing:
        yield "grey images go in as three equal channels, which its weights for colour suit"


def _obstacle(suggestion: Suggestion, needs: Needs) -> str:
    entry = suggestion.entry
    size_mb = entry.weights_bytes / 1e6
    if needs.language and entry.languages and not {needs.language, "*"} & set(entry.languages):
        return f"it was trained on {', '.join(entry.languages)}, not {needs.language}"
    if needs.max_size_mb and size_mb > needs.max_size_mb:
        return f"its weights take {_figure(size_mb)} MB, over {_figure(needs.max_size_mb)} MB"
    if needs.max_latency_ms and not suggestion.latency_ms:
        return "its multiply-accumulates are not recorded, so its latency cannot be estimated"
    if needs.max_latency_ms and suggestion.latency_ms > needs.max_latency_ms:
        latency, most = _figure(suggestion.latency_ms), _figure(needs.max_latency_ms)
        return f"about {latency} ms a prediction on one core, over {most} ms"
    return ""


def _rank(suggestion: Suggestion) -> tuple[float, ...]:
    entry = suggestion.entry
    slow = suggestion.training_s if suggestion.training_s > PATIENCE_S else 0.0
    accuracy = entry.published.value if entry.published else 0.0
    standing = accuracy if entry.preprocessing else entry.num_parameters
    return (slow, not entry.imported, entry.library != "torchvision", -standing)


def _figure(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.0f} h"
