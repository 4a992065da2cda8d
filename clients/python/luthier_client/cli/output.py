"""How results and errors look to people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from luthier.v1.dataset_pb2 import DataProblem
from luthier_client.errors import LuthierClientError, OperationFailed, Unreachable, Untrusted

MAX_PROBLEMS = 20


def table(*columns: str, rows: Iterable[Sequence[object]], title: str = "") -> Table:
    """A table; numbers stand at the right."""
    drawn = Table(
        box=box.SIMPLE_HEAD,
        # A title is not broken to the width of a narrow table.
        title=Text(title, style="bold", no_wrap=True, overflow="ignore") if title else None,
        title_justify="left",
        title_style="",
        show_edge=False,
        pad_edge=False,
    )
    cells = [list(row) for row in rows]
    for index, name in enumerate(columns):
        numbers = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
        drawn.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(text(value)) for value in row))
    return drawn


def facts(values: Mapping[str, object]) -> Table:
    """A list of names and values without the empty ones."""
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="bold")
    drawn.add_column(overflow="fold")
    for name, value in values.items():
        if value not in ("", None, [], {}):
            drawn.add_row(Text(name), Text(text(value)))
    return drawn


def text(value: object) -> str:
    """A value as people read it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return number(value)
        case int():
            return f"{value:,}"
        case Mapping():
            return ", ".join(f"{key} {text(inner)}" for key, inner in value.items())
        case list() | tuple():
            return ", ".join(text(inner) for inner in value)
        case _:
            return str(value)


def number(value: float) -> str:
    """A number with about four digits that count."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.1f}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1 else f"{value:.4g}"


def moment(timestamp: Timestamp) -> str:
    """A time, in this machine's zone."""
    return timestamp.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if timestamp.seconds else ""


def size(num_bytes: int) -> str:
    """A size in the unit that suits it."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def last(name: str) -> str:
    """The last part of a resource's name."""
    return name.rpartition("/")[2]


def short(version: str) -> str:
    """`beer/3` for `models/beer/versions/3`; likewise for data sets."""
    parts = version.split("/")
    return f"{parts[1]}/{parts[3]}" if len(parts) == 4 else last(version)


def print_error(console: Console, address: str, error: Exception) -> None:
    """Says what went wrong in a line, and below it each thing to put right."""
    match error:
        case Untrusted():
            _print_head(console, f"{address} is not to be trusted: {error.message}")
            console.print("Name the authority that signed its certificate with --tls-ca or LUTHIER_CA.")
        case Unreachable():
            _print_head(console, f"no server answers at {address}: {error.message}")
            console.print("Start one with `luthier serve`, or name another with --address or LUTHIER_ADDRESS.")
        case LuthierClientError():
            _print_luthier_error(console, error)
        case OSError() if error.filename:
            _print_head(console, f"{error.filename}: {error.strerror}")
        case _:
            _print_head(console, str(error))


def _print_head(console: Console, text: str) -> None:
    console.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def _print_luthier_error(console: Console, error: LuthierClientError) -> None:
    operation = f"{error.operation}: " if isinstance(error, OperationFailed) else ""
    head = error.message
    if error.problems:
        head = f"{len(error.problems)} problem{'s' if len(error.problems) > 1 else ''} in the data"
    elif error.violations:
        head = "the request is not valid"
    _print_head(console, operation + head)
    if error.problems:
        console.print(problems(error.problems))
        return
    for field, why in error.violations.items():
        console.print(f"  • [bold]{escape(field)}[/]: {escape(why)}", soft_wrap=True)


def problems(found: Sequence[DataProblem], title: str = "") -> Table:
    """Problems as a table, cut after the first ones."""
    drawn = table(
        "file",
        "row",
        "field",
        "problem",
        "times",
        title=title,
        rows=[
            (problem.file, problem.row or "", problem.field, problem.message, problem.count or 1)
            for problem in found[:MAX_PROBLEMS]
        ],
    )
    if len(found) > MAX_PROBLEMS:
        drawn.caption = f"and {len(found) - MAX_PROBLEMS} more"
    return drawn


def files(found: Sequence[Any]) -> Table:
    """Files of a base or bundle."""
    return table("file", "size", "SHA-256", rows=[(file.path, size(file.size_bytes), file.sha256) for file in found])
