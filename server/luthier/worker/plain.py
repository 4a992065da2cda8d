"""Values of any kind as short text for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_CHARACTERS = 600
ENTRIES = 6
"""Shown of a list."""


def texts(message: Message) -> dict[str, str]:
    """The fields of a message that are set."""
    return {name: text(value) for name, value in _fields(message).items()}


def columns(examples: pa.Table) -> dict[str, str]:
    """The columns of a few examples that are no bytes: one value where all have the same, or else a list."""
    import pyarrow.types as types

    shown = {}
    for field in examples.schema:
        if types.is_binary(field.type) or types.is_large_binary(field.type):
            continue
        values = examples[field.name].to_pylist()
        shown[field.name] = text(values[0] if all(value == values[0] for value in values) else values)
    return shown


def text(value: Any) -> str:
    """A string as it is, records of a list in a line each, anything else in one line; cut where it is long."""
    small = _small(value)
    if isinstance(small, list) and any(isinstance(entry, dict) for entry in small):
        written = "\n".join(_written(entry) for entry in small)
    else:
        written = _written(small)
    return short(written, TEXT_CHARACTERS)


def short(written: str, characters: int) -> str:
    """Cuts a string."""
    return written if len(written) <= characters else f"{written[: characters - 1]}…"


def number(value: float) -> str:
    """Four decimals, fewer for large numbers, a dash for what is no number."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}" if abs(value) < 1e5 else f"{value:,.0f}"


def count(value: int) -> str:
    """At most four characters, for narrow columns: `12`, `3.4k`, `56M`."""
    for divisor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= divisor:
            scaled = value / divisor
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return str(value)


def _small(value: Any) -> Any:
    """The same with long lists cut, bytes counted and numbers rounded to four digits."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return short(value, TEXT_CHARACTERS)
    if isinstance(value, Message):
        return _small(_fields(value))
    if isinstance(value, Mapping):
        return {str(key): _small(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        more = [f"… {len(value) - ENTRIES} more"] if len(value) > ENTRIES else []
        return [*(_small(entry) for entry in value[:ENTRIES]), *more]
    return value


def _written(value: Any, *, within: bool = False) -> str:
    """Much as JSON, without the quotes and the outermost braces."""
    if isinstance(value, dict):
        written = ", ".join(f"{name}: {_written(entry, within=True)}" for name, entry in value.items())
        return f"{{{written}}}" if within else written
    if isinstance(value, list):
        return f"[{', '.join(_written(entry, within=True) for entry in value)}]"
    return str(value)


def _fields(message: Message) -> dict[str, Any]:
    """The fields that are set, enumerations by name."""
    return {field.name: _named(field, value) for field, value in message.ListFields()}


def _named(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type and field.message_type.GetOptions().map_entry:
        return dict(value)
    values = list(value) if field.is_repeated else [value]
    if field.enum_type:
        values = [field.enum_type.values_by_number[v].name for v in values]
    return values if field.is_repeated else values[0]
