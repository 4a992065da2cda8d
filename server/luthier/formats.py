"""Opens CSV, TSV, JSONL and Parquet files as batches of columns, in whatever types the files hold.

Every file is UTF-8, with or without a byte order mark.

- `csv`: commas, and quotes as in RFC 4180: a quoted value may hold commas, line ends and doubled quotes.
- `tsv`: tabs, and no quoting at all: a quote is a character like any other, and no value holds a tab or a line end.
- `jsonl`: an object in each line.
- `parquet`: columns of any type.

Rows are counted from 1 without the header; blank lines count, so that rows and lines differ by the header alone
wherever no value holds a line end.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from luthier.errors import InvalidData
from luthier.task import DataFile
from luthier.v1.dataset_pb2 import DataProblem

MAX_PROBLEMS = 1000
"""Problems listed for one file; the last one tells how many more there were."""
MAX_ALIKE = 20
"""Rows listed with the same problem in the same field; the last of them carries the count of the rest."""
_BATCH = 1 << 16


class Problems:
    """What is wrong with one file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._problems: list[DataProblem] = []
        self._last_alike: dict[tuple[str, str], DataProblem] = {}
        self._alike: Counter[tuple[str, str]] = Counter()
        self._unlisted = 0
        self._rows: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._problems)

    def add(self, row: int, field: str, message: str) -> None:
        """Records one problem; `row` 0 is the file as a whole."""
        self._rows.add(row)
        kind = (field, message)
        self._alike[kind] += 1
        if self._alike[kind] > MAX_ALIKE and kind in self._last_alike:
            self._last_alike[kind].count += 1
        elif len(self._problems) < MAX_PROBLEMS:
            problem = DataProblem(file=self._file, row=row, field=field, message=message, count=1)
            self._problems.append(problem)
            self._last_alike[kind] = problem
        else:
            self._unlisted += 1

    def listed(self) -> list[DataProblem]:
        """All of them, by row."""
        problems = sorted(self._problems, key=lambda problem: problem.row)
        if self._unlisted:
            message = f"there are {self._unlisted} more problems like these"
            problems.append(DataProblem(file=self._file, message=message, count=self._unlisted))
        return problems

    def settle(self, file: DataFile) -> set[int]:
        """Returns the rows to leave out of a lenient file, to whose warnings all problems are added.

        Raises InvalidData with all of them where there are any and the file is not lenient, or is wrong as a whole.
        """
        if self and not (file.lenient and 0 not in self._rows):
            raise InvalidData(self.listed())
        if self:
            message = f"{len(self._rows)} rows are left out for what is wrong with them"
            file.warnings.append(DataProblem(file=file.name, message=message, count=len(self._rows)))
            file.warnings.extend(self.listed())
        return self._rows


@dataclass(frozen=True)
class Batch:
    """Some rows of a file."""

    rows: np.ndarray
    """Number of each row in the file."""
    columns: Mapping[str, pa.Array]
    """What the file holds, in whatever type: texts, numbers, or lists of them."""


@dataclass(frozen=True)
class Reader:
    """A file being read."""

    names: Sequence[str]
    """All columns that the file has."""
    batches: Iterator[Batch]
    """Its rows with the wanted columns."""


def open_file(file: DataFile, wanted: Mapping[str, str], problems: Problems) -> Reader | None:
    """Opens a file by its format; returns None, with the problems, where there is nothing to read.

    `wanted` maps each column of the file that is to be read to the field it is for, which problems name.
    """
    return _READERS[file.format](file, wanted, problems)


def _read_delimited(file: DataFile, wanted: Mapping[str, str], problems: Problems) -> Reader | None:
    """Opens CSV or TSV; None where there is no first row to take names from."""
    records = _records(file, problems)
    first = next(records, None)
    if first is None:
        if not problems:
            problems.add(0, "", "the file is empty")
        return None
    row, values = first
    names = [value.strip() for value in values] if file.header else [str(i) for i in range(len(values))]
    if not all(_is_text(name) and "\0" not in name for name in names):
        problems.add(0, "", "the header is not UTF-8 text; save the file as UTF-8")
        return None
    rows = records if file.header else itertools.chain([(row, values)], records)
    picks = [(name, names.index(name), field) for name, field in wanted.items() if name in names]
    return Reader(names, _delimited_batches(rows, picks, len(names), problems))


def _delimited_batches(
    records: Iterator[tuple[int, list[str]]], picks: list[tuple[str, int, str]], width: int, problems: Problems
) -> Iterator[Batch]:
    while chunk := list(itertools.islice(records, _BATCH)):
        rows, values = [], []
        for row, record in chunk:
            if len(record) == width:
                rows.append(row)
                values.append(record)
            else:
                problems.add(row, "", f"the row has {len(record)} columns where {width} are expected")
        columns = {
            name: _texts([record[index] for record in values], rows, field, problems) for name, index, field in picks
        }
        yield Batch(np.array(rows, dtype=np.int64), columns)


def _records(file: DataFile, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Number and values of each row; the header, where there is one, has number 0. Blank lines are left out."""
    quoted = file.format == "csv"
    # Bytes that are not UTF-8 come through as lone surrogates, so that the row and field they stand in can be named.
    with file.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="" if quoted else "\n") as stream:
        lines = _csv_records(stream, problems, int(not file.header)) if quoted else _tsv_records(stream)
        for row, values in enumerate(lines, int(not file.header)):
            if values:
                yield row, values


def _tsv_records(stream: TextIO) -> Iterator[list[str]]:
    for line in stream:
        text = line.rstrip("\r\n")
        yield text.split("\t") if text else []


def _csv_records(stream: TextIO, problems: Problems, first: int) -> Iterator[list[str]]:
    """Rows of a CSV; a malformed one is reported and given as empty."""
    csv.field_size_limit(2**31 - 1)  # The module's own limit is 128 KiB, which a long text exceeds.
    reader = csv.reader(stream, strict=True)
    for row in itertools.count(first):
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(row, "", f"the row is malformed: {error}")
            yield []


def _read_jsonl(file: DataFile, wanted: Mapping[str, str], problems: Problems) -> Reader | None:
    """Reads JSONL, whole: which columns there are is known at its end."""
    rows: list[int] = []
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    names: dict[str, None] = {}
    with file.path.open("rb") as stream:
        for row, line in enumerate(stream, 1):
            if (record := _json_object(line, row, problems)) is not None:
                rows.append(row)
                names |= dict.fromkeys(record)
                for name, column in values.items():
                    column.append(record.get(name))
    if not rows:
        if not problems:
            problems.add(0, "", "the file is empty")
        return None
    columns = {
        name: _json_values(column, rows, wanted[name], problems) for name, column in values.items() if name in names
    }
    return Reader(list(names), iter([Batch(np.array(rows, dtype=np.int64), columns)]))


def _json_object(line: bytes, row: int, problems: Problems) -> dict[str, Any] | None:
    """The object of a line; None for a blank or malformed one."""
    try:
        text = line.decode("utf-8-sig" if row == 1 else "utf-8").strip()
        record = json.loads(text) if text else None
    except UnicodeDecodeError:
        problems.add(row, "", "the line is not UTF-8 text; save the file as UTF-8")
        return None
    except (json.JSONDecodeError, RecursionError) as error:
        problems.add(row, "", f"the line is not JSON: {error}")
        return None
    if text and not isinstance(record, dict):
        problems.add(row, "", "the line is not a JSON object")
        return None
    return record


def _json_values(values: list[Any], rows: Sequence[int], field: str, problems: Problems) -> pa.Array:
    """JSON values as Arrow has them, or as texts where one column mixes types."""
    for row, value in zip(rows, values, strict=True):
        if isinstance(value, dict):
            problems.add(row, field, "the value is an object")
    flat = [None if isinstance(value, dict) else value for value in values]
    try:
        return pa.array(flat)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        if not any(isinstance(value, list) for value in flat):
            return _texts([_json_text(value) for value in flat], rows, field, problems)
    many = [value if isinstance(value, list) else [value] if value is not None else [] for value in flat]
    parents = [row for row, elements in zip(rows, many, strict=True) for _ in elements]
    texts = _texts([_json_text(element) for elements in many for element in elements], parents, field, problems)
    return lists(texts, np.array([len(elements) for elements in many]))


def _json_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _read_parquet(file: DataFile, wanted: Mapping[str, str], problems: Problems) -> Reader | None:
    """Opens Parquet; None where it is none."""
    try:
        parquet = pq.ParquetFile(file.path)
    except pa.ArrowInvalid as error:
        problems.add(0, "", f"the file is not Parquet: {str(error).splitlines()[0]}")
        return None
    names = parquet.schema_arrow.names
    return Reader(names, _parquet_batches(parquet, [name for name in wanted if name in names]))


def _parquet_batches(parquet: pq.ParquetFile, wanted: list[str]) -> Iterator[Batch]:
    start = 1
    for batch in parquet.iter_batches(_BATCH, columns=wanted):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        yield Batch(np.arange(start, start + batch.num_rows), columns)
        start += batch.num_rows


def _texts(values: list[Any], rows: Sequence[int], field: str, problems: Problems) -> pa.Array:
    """Texts as Arrow has them; those with bytes that are not UTF-8 are reported."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        for row, text in zip(rows, values, strict=True):
            if text is not None and not _is_text(text):
                problems.add(row, field, "the value is not UTF-8 text; save the file as UTF-8")
        return pa.array([text and text.encode(errors="replace").decode() for text in values], pa.string())


def _is_text(text: str) -> bool:
    """Whether a text can be encoded: one that was read from other bytes than UTF-8 holds lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lists(values: pa.Array, lengths: np.ndarray) -> pa.Array:
    """Lists of these lengths, filled with the values in order."""
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)


_READERS: dict[str, Callable[[DataFile, Mapping[str, str], Problems], Reader | None]] = {
    "csv": _read_delimited,
    "tsv": _read_delimited,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
