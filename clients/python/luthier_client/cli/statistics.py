"""Statistics of data sets for people. Each task has its own; what they share is the shape: values, groups, rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from luthier_client.cli import output

PARTS = ("train", "validation", "test")
MAX_ROWS = 10
HISTOGRAM = "histogram"
"""What a task calls the rows `from`, `to`, `count` of numbers that are spread."""
BAR = 40


def values(statistics: Mapping[str, Any]) -> dict[str, object]:
    """The values and groups of values, to be shown by name."""
    found: dict[str, object] = {}
    for name in in_order(statistics):
        value = statistics[name]
        if isinstance(value, Mapping):
            found[title(name)] = {inner: value[inner] for inner in in_order(value) if inner != HISTOGRAM}
        elif not is_rows(value):
            found[title(name)] = value
    return found


def tables(statistics: Mapping[str, Any]) -> list[Table]:
    """A table for each list of rows, cut after the first ones."""
    drawn = []
    for name in in_order(statistics):
        rows = statistics[name]
        if isinstance(rows, Mapping) and is_rows(rows.get(HISTOGRAM)):
            drawn.append(histogram(title(name), rows[HISTOGRAM]))
        if not is_rows(rows):
            continue
        columns = in_order({column for row in rows for column in row})
        columns.sort(key=lambda column: isinstance(rows[0].get(column), int | float))
        more = len(rows) - MAX_ROWS
        drawn.append(
            output.table(
                *map(title, columns),
                title=title(name) + (f" ({more} more not shown)" if more > 0 else ""),
                rows=[[row.get(column, "") for column in columns] for row in rows[:MAX_ROWS]],
            )
        )
    return drawn


def histogram(name: str, rows: Sequence[Mapping[str, float]]) -> Table:
    """Bars as long as what they count, the longest BAR characters."""
    most = max(row["count"] for row in rows)
    return output.table(
        name,
        "",
        "count",
        rows=[(_range(row), "█" * math.ceil(BAR * row["count"] / most), int(row["count"])) for row in rows],
    )


def _range(row: Mapping[str, float]) -> str:
    first, last = int(row["from"]), int(row["to"]) - 1
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def is_rows(value: Any) -> bool:
    """Whether a value is a list of mappings."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order that people expect: the parts as they follow each other, `q5` before `q50` before `q100`.

    The server sends statistics as google.protobuf.Struct, which has no order.
    """

    def key(name: str) -> tuple[int, list[tuple[int, str]]]:
        pieces = re.findall(r"\d+|\D+", name)
        natural = [(int(piece), "") if piece.isdigit() else (0, piece) for piece in pieces]
        return PARTS.index(name) if name in PARTS else -1, natural

    return sorted(names, key=key)


def title(name: str) -> str:
    """A name as people read it."""
    return name.replace("_", " ")
