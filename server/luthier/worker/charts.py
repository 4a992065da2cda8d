"""Line charts as numbers for a template to draw: where lines, ticks and labels go in a picture of WIDTH x HEIGHT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.curves import MOST_POINTS

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 42
"""Margins around the lines, for ticks and the names of axes."""
COLOURS = 10
FEW = 12
"""Lines of so few points show them as dots."""


@dataclass(frozen=True)
class Series:
    """A line to draw; points whose value is not finite are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    reference: bool = False


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A drawn line."""

    label: str
    points: list[tuple[float, float]]
    colour: int
    """From 0 to COLOURS - 1; -1 for a line of reference."""

    @property
    def path(self) -> str:
        """As the attribute `points` of a polyline."""
        return " ".join(f"{x:g},{y:g}" for x, y in self.points)

    @property
    def dots(self) -> list[tuple[float, float]]:
        """The points, where they are few."""
        return self.points if len(self.points) <= FEW and self.colour >= 0 else []


@dataclass(frozen=True)
class Chart:
    """A drawn chart."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series], *, unit: bool = False) -> Chart | None:
    """Lays a chart out; None where no line has a point. With `unit` both axes go from 0 to 1 if all points do."""
    lines = [(each, _points(each)) for each in series]
    x = [point[0] for _, points in lines for point in points]
    y = [point[1] for _, points in lines for point in points]
    if not x:
        return None
    whole = unit and min(*x, *y) >= 0 and max(*x, *y) <= 1
    x_ticks = _ticks(0, 1) if whole else _ticks(min(x), max(x), integers=all(value == int(value) for value in x))
    y_ticks = _ticks(0, 1) if whole else _ticks(min(y), max(y))
    x_low, x_high = (x_ticks[0], x_ticks[-1]) if whole else _range(x)
    y_low, y_high = min(y_ticks[0], *y), max(y_ticks[-1], *y)

    def across(value: float) -> float:
        return round(LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def up(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    colours = iter(range(len(lines)))
    return Chart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x_ticks=[Tick(across(value), _text(value, x_ticks)) for value in x_ticks if x_low <= value <= x_high],
        y_ticks=[Tick(up(value), _text(value, y_ticks)) for value in y_ticks],
        lines=[
            Line(
                each.label,
                [(across(x), up(y)) for x, y in points],
                -1 if each.reference else next(colours) % COLOURS,
            )
            for each, points in lines
            if points
        ],
    )


def _points(series: Series) -> list[tuple[float, float]]:
    """The finite points, evenly thinned to as many as can be told apart, the first and the last among them."""
    points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(i * step)] for i in range(MOST_POINTS)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest, or a little around them where they are one."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, *, integers: bool = False, count: int = 5) -> list[float]:
    """About `count` round numbers from below `low` to above `high` (Heckbert 1990, "Nice numbers for graph labels")."""
    low, high = _range((low, high))
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough)
    if integers:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _text(value: float, ticks: Sequence[float]) -> str:
    """A tick's number with as many decimals as its neighbours need."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1
    if step < 1e-6 or abs(value) >= 1e7:
        return f"{value:.4g}"
    decimals = next((d for d in range(8) if abs(round(step, d) - step) < step * 1e-6), 8)
    return f"{value:,.{decimals}f}"
