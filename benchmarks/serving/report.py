"""What a record of measurements says: medians, ratios, limits met or missed, and the page that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

TEMPLATE = Path(__file__).with_name("page.md.j2")

CONTENDERS = ("limit", "luthier", "triton", "mlserver")
"""In the order of the tables."""
JUDGED = "8"
"""Calls in flight at which Luthier is held to the limits; a key of JSON."""
OVER_MLSERVER = 4.0
"""What its throughput has to be at least, in MLServer's."""
LEAST_TURNS = 5
"""Turns below which nothing is said about limits for good."""


@dataclass(frozen=True)
class Spread:
    """The median of the turns, and the least and the most of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """A limit, and what was reached."""

    case: str
    what: str
    reached: float
    limit: float
    is_met: bool


def spread(turns: Sequence[Mapping[str, float]], figure: str) -> Spread:
    """A figure over the turns."""
    values = [turn[figure] for turn in turns]
    return Spread(statistics.median(values), min(values), max(values))


def ratio(loads: Mapping[str, Sequence[Mapping[str, float]]], peer: str, figure: str) -> float | None:
    """Luthier's median in the peer's; None where one of them was not measured."""
    if "luthier" not in loads or peer not in loads:
        return None
    return spread(loads["luthier"], figure).median / spread(loads[peer], figure).median


def verdicts(record: Mapping[str, Any]) -> Iterator[Verdict]:
    """Every limit that the record has the figures for."""
    for case in record["cases"]:
        loads = case["in_flight"].get(JUDGED, {})
        for what, peer, measure, limit in (
            ("throughput in Triton's", "triton", "per_s", case["over_triton"]),
            ("throughput in MLServer's", "mlserver", "per_s", OVER_MLSERVER),
            ("p99 in Triton's", "triton", "p99_ms", 1.0),
        ):
            reached = ratio(loads, peer, measure)
            if reached is not None:
                is_met = reached <= limit if measure == "p99_ms" else reached >= limit
                yield Verdict(case["id"], what, reached, limit, is_met)


def page(record: Mapping[str, Any]) -> str:
    """The page for what was recorded."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters["figure"] = figure
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        record,
        contenders=CONTENDERS,
        judged=JUDGED,
        least_turns=LEAST_TURNS,
        spread=spread,
        ratio=ratio,
        verdicts=list(verdicts(record)),
        groups=list(next(iter(record["profile"].values()), {})),
    )


def figure(value: float | None) -> str:
    """A number of three digits or of all before the point; nothing for None."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
