"""Reads the examples of a task from tables, one row each, and splits examples by a stable hash.

`luthier.formats` says which files there are. What a file holds becomes the type of the field wherever nothing is lost:
numbers become texts, texts numbers, a time stamp the seconds since 1970, text bytes by base64. An absent value is an
empty cell, an empty text, a null or an absent key.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from luthier import fields
from luthier.errors import InvalidData
from luthier.formats import Batch, lists, open_file
from luthier.formats import Problems as Problems  # Plugins that read files of their own report with it.
from luthier.task import PARTS, DataFile
from luthier.v1.dataset_pb2 import Split

FRACTIONS = (0.8, 0.1, 0.1)
"""Shares of train, validation and test where a split states none."""

_TYPES = {
    FieldDescriptor.CPPTYPE_STRING: pa.string(),
    FieldDescriptor.CPPTYPE_DOUBLE: pa.float64(),
    FieldDescriptor.CPPTYPE_FLOAT: pa.float64(),
    FieldDescriptor.CPPTYPE_INT32: pa.int64(),
    FieldDescriptor.CPPTYPE_INT64: pa.int64(),
    FieldDescriptor.CPPTYPE_UINT32: pa.int64(),
    FieldDescriptor.CPPTYPE_BOOL: pa.bool_(),
    FieldDescriptor.CPPTYPE_ENUM: pa.string(),
}
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
}
_ZEROS: dict[pa.DataType, Any] = {
    pa.string(): "",
    pa.binary(): b"",
    pa.float64(): 0.0,
    pa.int64(): 0,
    pa.bool_(): False,
}
_WANTED: dict[pa.DataType, str] = {
    pa.float64(): "a number",
    pa.int64(): "a whole number of at most 64 bits",
    pa.bool_(): "true, false, 1 or 0",
    pa.binary(): "base64",
    pa.string(): "UTF-8 text",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column to read: a field of an example message, or one that a task states for its other files."""

    name: str
    type: pa.DataType = pa.string()  # noqa: RUF009 - types of Arrow are immutable
    """One of string, binary, float64, int64 and bool."""
    repeated: bool = False
    """True for lists of `type`."""
    required: bool = False
    default: str = ""
    """What absent values of a column that is not required become; empty: the type's zero."""
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    """The only values allowed; empty: any."""

    @property
    def arrow(self) -> pa.Field:
        """The column of the table that is read."""
        return pa.field(self.name, pa.list_(self.type) if self.repeated else self.type)

    @property
    def zero(self) -> pa.Scalar:
        """The default as a value."""
        return pa.scalar(self.default).cast(self.type) if self.default else pa.scalar(_ZEROS[self.type], self.type)


def columns_of(example: type[Message]) -> list[Column]:
    """The columns of an example message, in the order of its fields."""
    return [_column_of(field) for field in cast(Descriptor, example.DESCRIPTOR).fields]


def schema_of(example: type[Message]) -> pa.Schema:
    """The Arrow schema of tables of an example message.

    Floating point becomes float64, whole numbers int64, enums their names; `repeated` becomes a list.
    """
    return pa.schema([column.arrow for column in columns_of(example)])


def of_messages(kind: type[Message], messages: Sequence[Message]) -> pa.Table:
    """A table with a row for each message, and a column for each field, whether it is set or not.

    Types are those of `schema_of`; messages in messages become structs.
    """
    descriptor = cast(Descriptor, kind.DESCRIPTOR)
    return pa.Table.from_pylist([_plain(message) for message in messages], pa.schema(_arrow_fields(descriptor)))


def _arrow_fields(descriptor: Descriptor) -> list[pa.Field]:
    found = []
    for field in descriptor.fields:
        if field.message_type:
            kind = pa.struct(_arrow_fields(field.message_type))
        elif field.type == FieldDescriptor.TYPE_BYTES:
            kind = pa.large_binary()
        else:
            kind = _TYPES[field.cpp_type]
        found.append(pa.field(field.name, pa.list_(kind) if field.is_repeated else kind))
    return found


def _plain(message: Message) -> dict[str, Any]:
    """A message's fields as Arrow takes them; enums by their names."""
    row = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        values = list(value) if field.is_repeated else [value]
        if field.message_type:
            values = [_plain(one) for one in values]
        elif field.enum_type:
            values = [field.enum_type.values_by_number[one].name for one in values]
        row[field.name] = values if field.is_repeated else values[0]
    return row


def read(file: DataFile, example: type[Message]) -> pa.Table:
    """Reads a file into a table with exactly the columns of `schema_of(example)`.

    `file.columns` maps a field to the file's column; for a repeated field to several columns, separated by commas, or
    to one that holds lists. A field whose column the file lacks takes its default, unless it is required.
    Raises InvalidData with every problem of the file, each by row and field; of a lenient file rows that have one are
    left out instead.
    """
    return read_columns(file, columns_of(example))


def read_columns(file: DataFile, columns: Sequence[Column]) -> pa.Table:
    """Reads columns that are stated one by one, as `read` does those of an example message."""
    problems = Problems(file.name)
    schema = pa.schema([column.arrow for column in columns])
    sources = {column.name: _source(file, column) for column in columns}
    wanted = {name: field for field, names in sources.items() for name in names}
    reader = open_file(file, wanted, problems)
    if reader is None or not _find(columns, sources, reader.names, file, problems):
        raise InvalidData(problems.listed())
    rows, batches = [np.zeros(0, dtype=np.int64)], []
    for batch in reader.batches:
        arrays = [_assemble(column, sources[column.name], batch, problems) for column in columns]
        batches.append(pa.record_batch(arrays, schema=schema))
        rows.append(batch.rows)
    table = pa.Table.from_batches(batches, schema).combine_chunks()
    if not problems and not table.num_rows:
        problems.add(0, "", "the file has no rows")
    if left_out := problems.settle(file):
        table = table.filter(pa.array(~np.isin(np.concatenate(rows), list(left_out))))
        if not table.num_rows:
            raise InvalidData(problems.listed())
    return table


def split_by_hash(examples: pa.Table, split: Split, key: Sequence[str] | None = None) -> dict[str, pa.Table]:
    """Divides examples into `train`, `validation` and `test` by a hash of their content.

    The part of an example follows from the split's seed and from the example's key columns (all columns where `key` is
    None) alone, so it stays what it is whatever is added, on every machine. Texts that differ in case or white space
    only are equal. Equal examples are in one part; in validation and test the first of them stands for all.
    `split.fractions` are the three shares; examples beyond their sum are in no part.
    """
    hashes = _hashes(examples.select(list(key or examples.column_names)), split.seed)
    shares = np.frombuffer(b"".join(hash[:8] for hash in hashes), "<u8") / 2.0**64
    bounds = np.cumsum(split.fractions or FRACTIONS)
    if bounds[-1] > 1 - 1e-4:
        bounds /= bounds[-1]
        # Rounding must not push the largest shares out of the last part.
        bounds[bounds == bounds[-1]] = np.inf
    part = np.searchsorted(bounds, shares, side="right")
    first = np.zeros(len(hashes), dtype=bool)
    first[np.unique(np.array(hashes, dtype="V16"), return_index=True)[1]] = True
    return {
        name: examples.filter(pa.array((part == index) & (first | (name == "train"))))
        for index, name in enumerate(PARTS)
    }


def _hashes(keys: pa.Table, seed: int) -> list[bytes]:
    """BLAKE2b, 16 bytes, of the seed and each row as a JSON array."""
    encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
    rows = zip(*(map(_normal, column.to_pylist()) for column in keys.columns), strict=True)
    start = hashlib.blake2b(f"{seed}\n".encode(), digest_size=16)
    hashes = []
    for row in rows:
        hash = start.copy()
        hash.update(encode(row).encode())
        hashes.append(hash.digest())
    return hashes


def _normal(value: Any) -> Any:
    """A value as the hash sees it."""
    match value:
        case str():
            return " ".join(value.casefold().split())
        case bytes():
            return value.hex()
        case list():
            return [_normal(element) for element in value]
        case _:
            return value


def _column_of(field: FieldDescriptor) -> Column:
    help = fields.help_of(field)
    if field.type == FieldDescriptor.TYPE_BYTES:
        kind = pa.binary()
    elif field.cpp_type in _TYPES:
        kind = _TYPES[field.cpp_type]
    else:
        raise TypeError(f"{field.full_name} cannot be a column; a task with such an example brings a `read` of its own")
    low, high = _RANGES.get(field.cpp_type, (None, None))
    choices = tuple(value.name for value in field.enum_type.values) if field.enum_type else ()
    return Column(
        name=field.name,
        type=kind,
        repeated=field.is_repeated,
        required=help.required,
        default=help.default or (choices[0] if choices else ""),
        min=help.min if help.HasField("min") else low,
        max=help.max if help.HasField("max") else high,
        choices=choices,
    )


def _source(file: DataFile, column: Column) -> list[str]:
    """Names of the file's columns that a column is made of."""
    name = file.columns.get(column.name, column.name)
    return [part.strip() for part in name.split(",")] if column.repeated else [name]


def _find(
    columns: Sequence[Column],
    sources: Mapping[str, list[str]],
    names: Sequence[str],
    file: DataFile,
    problems: Problems,
) -> bool:
    """Whether the file has all columns that must be there; reports those that are not."""
    missing = [
        (column, name)
        for column in columns
        for name in sources[column.name]
        if name not in names and (column.required or column.name in file.columns)
    ]
    taken = {name for source in sources.values() for name in source}
    free = itertools.cycle([name for name in names if name not in taken] or ["COLUMN"])
    listed = ", ".join(f"`{name[:40]}`" for name in names)
    for column, name in missing:
        message = (
            f"there is no column `{name}`; the file has {listed}; "
            f"say which one it is, for instance --column {column.name}={next(free)[:40]}"
        )
        if file.header and file.format in ("csv", "tsv"):
            message += ", or --no-header where the first line is data"
        problems.add(0, column.name, message)
    twice = sorted(name for name, count in Counter(names).items() if count > 1 and name in taken)
    for name in twice:
        problems.add(0, "", f"there are several columns `{name}`")
    return not missing and not twice


def _assemble(column: Column, sources: Sequence[str], batch: Batch, problems: Problems) -> pa.Array:
    """One column of the result for some rows."""
    found = [batch.columns[name] for name in sources if name in batch.columns]
    if not column.repeated:
        return _convert(column, found[0], batch.rows, problems) if found else _defaults(column, len(batch.rows))
    if not found:
        return lists(pa.array([], column.type), np.zeros(len(batch.rows)))
    if len(found) == 1 and pa.types.is_null(found[0].type):
        found = [found[0].cast(pa.list_(column.type))]
    if len(found) == 1 and _is_list(found[0].type):
        return _convert_lists(column, found[0], batch.rows, problems)
    size, width = len(batch.rows), len(found)
    converted = [
        _convert(column, values, batch.rows, problems, f"`{name}` has no value")
        for name, values in zip(sources, found, strict=True)
    ]
    by_row = np.arange(width * size).reshape(width, size).T.ravel()
    return lists(pa.concat_arrays(converted).take(pa.array(by_row)), np.full(size, width))


def _convert_lists(column: Column, values: pa.Array, rows: np.ndarray, problems: Problems) -> pa.Array:
    """Converts lists; an absent one is empty, an absent element is a problem."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if column.required:
        for row in rows[lengths == 0]:
            problems.add(int(row), column.name, "there is no value")
    elements = pc.list_flatten(values)
    return lists(_convert(column, elements, rows.repeat(lengths), problems, "an element has no value"), lengths)


def _convert(column: Column, values: pa.Array, rows: np.ndarray, problems: Problems, absent: str = "") -> pa.Array:
    """Converts values to the column's type and reports those that are absent, do not parse or are out of bounds.

    `absent` is what to say of an absent value where that is a problem even if the column is not required.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_nested(values.type):
        problems.add(0, column.name, f"the column holds {values.type} where single values are wanted")
        return _defaults(column, len(values))
    if _is_text_type(values.type):
        values = values.cast(pa.string())
        if column.type != pa.string():
            values = pc.utf8_trim_whitespace(values)
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
    if column.required or absent:
        for row in rows[values.is_null().to_numpy(zero_copy_only=False)]:
            problems.add(int(row), column.name, absent or "there is no value")
    try:
        parsed = _cast(values, column.type)
    except pa.ArrowNotImplementedError:
        problems.add(0, column.name, f"the column holds {values.type} where {_WANTED[column.type]} is wanted")
        return _defaults(column, len(values))
    except pa.ArrowInvalid:
        parsed = _parse_each(column, values, rows, problems)
    _check(column, parsed, rows, problems)
    return parsed.fill_null(column.zero)


def _cast(values: pa.Array, type: pa.DataType) -> pa.Array:
    """Casts a whole array; raises ArrowInvalid where a value does not fit, ArrowNotImplementedError where none can."""
    if type == pa.binary() and _is_text_type(values.type):
        raise pa.ArrowInvalid("base64 is decoded value by value")
    if type == pa.bool_() and (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise pa.ArrowInvalid("Arrow would take any number but 0 for true")
    if type == pa.float64() and pa.types.is_timestamp(values.type):
        return pc.divide(values.cast(pa.timestamp("us")).cast(pa.int64()).cast(type, safe=False), 1e6)
    if type == pa.float64() and pa.types.is_integer(values.type):
        return values.cast(type, safe=False)
    return values.cast(type)


def _parse_each(column: Column, values: pa.Array, rows: np.ndarray, problems: Problems) -> pa.Array:
    """Parses one value after the other, so that those that do not parse can be named."""
    parse = _PARSERS[column.type]
    parsed = []
    raw = values if pa.types.is_binary(values.type) else values.cast(pa.string())
    for row, text in zip(rows, raw.to_pylist(), strict=True):
        try:
            parsed.append(None if text is None else parse(text))
        except ValueError:
            problems.add(int(row), column.name, f"`{text[:40]}` is not {_WANTED[column.type]}")
            parsed.append(None)
    return pa.array(parsed, column.type)


def _parse_int(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError
    return value


def _parse_bool(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError from None


_PARSERS: dict[pa.DataType, Callable[[Any], Any]] = {
    pa.float64(): float,
    pa.int64(): _parse_int,
    pa.bool_(): _parse_bool,
    pa.binary(): lambda text: base64.b64decode(text, validate=True),
    pa.string(): bytes.decode,
}


def _check(column: Column, values: pa.Array, rows: np.ndarray, problems: Problems) -> None:
    """Reports values that are not finite, out of bounds or none of the choices."""

    def report(wrong: pa.Array, why: str) -> None:
        for index in np.flatnonzero(wrong.fill_null(False).to_numpy(zero_copy_only=False)):
            problems.add(int(rows[index]), column.name, f"`{values[int(index)].as_py()}` {why}")

    if column.type == pa.float64():
        report(pc.invert(pc.is_finite(values)), "is not a finite number")
    if column.min is not None:
        report(pc.less(values, column.min), f"is below the smallest value, {column.min:g}")
    if column.max is not None:
        report(pc.greater(values, column.max), f"is above the largest value, {column.max:g}")
    if column.choices:
        known = pc.is_in(values, value_set=pa.array([*column.choices, None], pa.string()))
        report(pc.invert(known), f"is none of {', '.join(column.choices)}")


def _defaults(column: Column, size: int) -> pa.Array:
    return pa.repeat(column.zero, size)


def _is_list(type: pa.DataType) -> bool:
    return bool(pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type))


def _is_text_type(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))
