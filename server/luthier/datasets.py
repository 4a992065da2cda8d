"""Makes immutable, content-addressed data set versions out of files, and loads them again.

A version is a folder of Parquet files, one for each part and each extra file, with `dataset.json` beside them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from google.protobuf.json_format import MessageToDict

from luthier.errors import DataLoss, InvalidArgument, InvalidData
from luthier.tabular import FRACTIONS
from luthier.task import PARTS, DataFile, Task
from luthier.v1.dataset_pb2 import DataProblem, Split

DESCRIPTION = "dataset.json"
"""What a version's folder says of itself: task, digest, split, statistics, warnings."""
MAX_WARNINGS = 100
"""Different warnings that are kept."""
_CARVED = 0.1
"""Share of train that becomes validation, and test, where files for other parts are given but none for it."""

Report = Callable[[str, int, int], None]
"""Takes a stage, the steps done in it and their total."""


@dataclass(frozen=True)
class Built:
    """A version that was written."""

    digest: str
    num_examples: dict[str, int]
    """Rows of each part and extra file."""
    size_bytes: int
    """Of the Parquet files."""
    split: Split
    """How it was split, with the defaults filled in."""
    statistics: dict[str, Any]
    warnings: list[DataProblem]


def build(
    task: Task,
    files: Sequence[DataFile],
    split: Split,
    directory: Path,
    report: Report = lambda stage, done, total: None,
    *,
    strict: bool = False,
) -> Built:
    """Reads, splits, validates and writes files as one version into a folder, which is made if need be.

    Files either all have one of the roles `train`, `validation` and `test`, or none has: then `split` divides them.
    A part that is not given is taken from train by a hash. Extra files go by their own roles. An archive may say itself
    which part its examples belong to; a split that is asked for by its method goes before that.

    Raises InvalidArgument where files and split do not go together, InvalidData with every problem of every file; where
    it is to be `strict`, of what is only odd too.
    """
    if split.method != "given":  # Whether they are given, an archive may say: that shows once it is read.
        _plan(task, [(f"files[{i}].role", file.role) for i, file in enumerate(files)], split)
    tables = _read(task, files, split, report)
    plan = _plan(task, [("files", role) for role in tables], split)
    report("splitting", 0, 1)
    parts = _assemble(task, tables, plan)
    odd = [w for file in files for w in file.warnings], _left_out(tables, parts)
    return _stored(task, parts, plan.recorded, directory, report, odd, strict=strict)


def build_of(
    task: Task,
    parts: Mapping[str, pa.Table],
    split: Split,
    directory: Path,
    report: Report = lambda stage, done, total: None,
) -> Built:
    """Validates and writes a version whose parts and extra files are there already, divided as `split` records.

    Raises InvalidData with what the task does not accept.
    """
    ordered = {name: parts[name] for name in (*PARTS, *task.extra_files) if name in parts}
    if not ordered["train"].num_rows:
        raise InvalidData([DataProblem(message="no example is left to train from", count=1)])
    return _stored(task, ordered, split, directory, report, ([], []), strict=False)


def _stored(
    task: Task,
    parts: Mapping[str, pa.Table],
    split: Split,
    directory: Path,
    report: Report,
    odd: tuple[list[DataProblem], list[DataProblem]],
    *,
    strict: bool,
) -> Built:
    """Validates parts and writes them; `odd` is what to warn of before and behind what the task warns of."""
    report("validating", 0, 1)
    warnings = _kept([*odd[0], *_validate(task, parts)]) + odd[1]
    if strict and warnings:
        raise InvalidData(warnings)
    statistics = task.describe(parts)
    report("writing", 0, 1)
    directory.mkdir(parents=True, exist_ok=True)
    built = Built(
        digest=digest_of(task.id, parts),
        num_examples={name: table.num_rows for name, table in parts.items()},
        size_bytes=sum(_write(table, directory / f"{name}.parquet") for name, table in parts.items()),
        split=split,
        statistics=statistics,
        warnings=warnings,
    )
    _describe(task, built, directory)
    return built


def load(directory: Path, parts: Iterable[str] | None = None) -> dict[str, pa.Table]:
    """Reads parts of a version, all of them where none is named; raises DataLoss where a file is gone or damaged."""
    if parts is None:
        parts = _loaded(directory, DESCRIPTION, lambda path: json.loads(path.read_bytes())["num_examples"])
    return {
        name: _loaded(directory, f"{name}.parquet", lambda path: pq.ParquetFile(path, memory_map=True).read())
        for name in parts
    }


def digest_of(task: str, parts: Mapping[str, pa.Table]) -> str:
    """SHA-256 over the logical content of a version, whatever the names and formats of the files it came from.

    Hashed are, in this order: a line of JSON with the format's version, the task's id, and of each part its name, its
    number of rows, its columns' names and types; then column by column the values. A column of n values is n bytes
    that are 1 where there is a value and 0 where there is none, followed by: numbers and booleans (one byte) in little
    endian order; texts and bytes as n lengths of 8 bytes and then all content; lists as n lengths and then the column
    of all elements; records as the columns of their fields. An absent value is zero or empty. Neither Parquet's bytes
    nor how Arrow chunks a column come into it. Parts are ordered as they are stored: train, validation, test, extras.
    """
    shape = [
        [name, table.num_rows, [[field.name, _name(field.type)] for field in table.schema]]
        for name, table in parts.items()
    ]
    hash = hashlib.sha256(json.dumps(["luthier.dataset.v1", task, shape]).encode() + b"\n")
    for table in parts.values():
        for column in table.columns:
            _feed(hash.update, column)
    return hash.hexdigest()


def _name(kind: pa.DataType) -> str:
    """A type's name in the digest; Arrow's own would tell how it is stored, and changes when it is."""
    if pa.types.is_struct(kind):
        return f"record<{', '.join(f'{field.name}: {_name(field.type)}' for field in kind)}>"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{_name(kind.value_type)}>"
    return str(kind).removeprefix("large_")


def _feed(update: Callable[[Any], None], column: pa.ChunkedArray) -> None:
    """Hashes one column as `digest_of` says."""
    kind = column.type
    update(_raw(pc.cast(column.is_valid(), pa.uint8()), "u1"))
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            _feed(update, pc.struct_field(column, index))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        update(_raw(pc.fill_null(pc.list_value_length(column), 0), "<i8"))
        _feed(update, pc.list_flatten(column))
    elif kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        update(_raw(pc.fill_null(pc.binary_length(column), 0), "<i8"))
        for chunk in column.cast(pa.large_binary()).chunks:
            update(_content(chunk.drop_null()))
    elif pa.types.is_boolean(kind):
        update(_raw(pc.cast(pc.fill_null(column, False), pa.uint8()), "u1"))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = pc.fill_null(column, pa.scalar(0).cast(kind))
        update(_raw(values, np.dtype(kind.to_pandas_dtype()).newbyteorder("<")))
    else:
        raise TypeError(f"a column of type {kind} cannot be part of a data set")


def _raw(column: pa.ChunkedArray, dtype: Any) -> np.ndarray:
    return np.ascontiguousarray(column.to_numpy(), dtype)


def _content(values: pa.LargeBinaryArray) -> memoryview:
    """The bytes of all values, one after the other."""
    _, offsets, data = values.buffers()
    if not len(values) or data is None:
        return memoryview(b"")
    bounds = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    return memoryview(data)[bounds[0] : bounds[-1]]


@dataclass(frozen=True)
class _Plan:
    """How the parts come about."""

    draw: Split | None
    """What to ask of the task, None where every part is given."""
    source: str
    """Role of the examples that are drawn from: `train`, or empty."""
    recorded: Split


def _plan(task: Task, given_roles: Sequence[tuple[str, str]], split: Split) -> _Plan:
    """Checks that roles, each with the field that states it, and split go together."""
    known = (*PARTS, *task.extra_files)
    violations = {
        field: f"{role!r} is none of {', '.join(known)}" for field, role in given_roles if role and role not in known
    }
    roles = {role for _, role in given_roles} - set(task.extra_files)
    if "" in roles and len(roles) > 1:
        field = next(field for field, role in given_roles if not role)
        violations[field] = "other files say which part they are, so this one must: train, for instance"
    elif not violations and not roles & {"", "train"}:
        violations["files"] = "there is no file to train from"
    given = roles & {"validation", "test"}
    if given:
        if split.method not in ("", "given", "hash") or split.fractions:
            violations["split"] = (
                f"{' and '.join(sorted(given))} are given, so what else is needed is taken from train by a hash; "
                "state no split"
            )
    else:
        violations |= _check_split(task, split)
    if violations:
        raise InvalidArgument(violations)
    if not given:
        draw = Split(method=split.method or "hash", fractions=split.fractions, seed=split.seed)
        if draw.method == "hash" and not draw.fractions:
            draw.fractions.extend(FRACTIONS)
        return _Plan(draw, "train" if "train" in roles else "", draw)
    validation, test = (0.0 if part in given else _CARVED for part in ("validation", "test"))
    if not validation and not test:
        return _Plan(None, "train", Split(method="given"))
    fractions = (1 - validation - test, validation, test)
    draw = Split(method="hash", fractions=fractions, seed=split.seed)
    return _Plan(draw, "train", Split(method="given", fractions=fractions, seed=split.seed))


def _check_split(task: Task, split: Split) -> dict[str, str]:
    method = split.method or "hash"
    if method not in task.splits:
        return {"split.method": f"{method!r} is none of {', '.join(task.splits)}"}
    fractions = list(split.fractions)
    if not all(math.isfinite(share) and share >= 0 for share in fractions) or sum(fractions) > 1.0001:
        return {"split.fractions": "shares are numbers from 0 that add up to at most 1"}
    if method == "hash" and fractions and (len(fractions) != len(PARTS) or not fractions[0]):
        return {"split.fractions": "hash takes three shares, of train, validation and test; that of train is not 0"}
    return {}


def _read(task: Task, files: Sequence[DataFile], split: Split, report: Report) -> dict[str, pa.Table]:
    """The tables by role; raises InvalidData with the problems of all files."""
    tables: dict[str, list[pa.Table]] = {}
    problems: list[DataProblem] = []
    for done, file in enumerate(files):
        report("reading", done, len(files))
        try:
            found = task.read(file)
        except InvalidData as error:
            problems.extend(error.problems)
            continue
        by_role = found if isinstance(found, Mapping) else {file.role: found}
        if file.lenient and not any(
            table.num_rows for role, table in by_role.items() if role in ("", *PARTS, file.role)
        ):
            # All was left out, so what was wrong with it is why there is nothing.
            problems.extend(file.warnings)
        for role, table in by_role.items():
            tables.setdefault(_role(role, file, split), []).append(table)
    if problems:
        raise InvalidData(problems)
    return {role: pa.concat_tables(same) for role, same in tables.items()}


def _role(found: str, file: DataFile, split: Split) -> str:
    """The role of a table of a file: what the user says of the file goes before what the file says of its tables."""
    if found and found not in PARTS:
        return found
    divided_anew = split.method not in ("", "given")
    return file.role or ("" if divided_anew else found)


def _assemble(task: Task, tables: Mapping[str, pa.Table], plan: _Plan) -> dict[str, pa.Table]:
    """All parts, then the extra files, in the order in which they are stored."""
    examples = tables[plan.source]
    drawn = task.split(examples, plan.draw) if plan.draw else {"train": examples}
    parts = {name: drawn.get(name, examples.slice(0, 0)) for name in PARTS}
    parts |= {name: tables[name] for name in ("validation", "test") if name in tables}
    if not parts["train"].num_rows:
        raise InvalidData([DataProblem(message="no example is left to train from; the files hold too few", count=1)])
    return parts | {role: tables[role] for role in task.extra_files if role in tables}


def _validate(task: Task, parts: Mapping[str, pa.Table]) -> list[DataProblem]:
    """What the task finds odd; raises InvalidData with what it does not accept."""
    found = list(task.validate(parts))
    if fatal := [problem for is_fatal, problem in found if is_fatal]:
        raise InvalidData(fatal)
    return [problem for _, problem in found]


def _kept(warnings: Iterable[DataProblem]) -> list[DataProblem]:
    """Those that are kept with the version, alike ones counted together."""
    alike: dict[tuple[str, str, str], DataProblem] = {}
    for problem in warnings:
        first = alike.setdefault((problem.file, problem.field, problem.message), DataProblem())
        count = first.count + max(problem.count, 1)
        if not first.count:
            first.CopyFrom(problem)
        first.count = count
    return list(alike.values())[:MAX_WARNINGS]


def _left_out(tables: Mapping[str, pa.Table], parts: Mapping[str, pa.Table]) -> list[DataProblem]:
    """A warning where examples are in no part."""
    read, kept = (sum(t.num_rows for name, t in some.items() if name in ("", *PARTS)) for some in (tables, parts))
    if read == kept:
        return []
    message = (
        f"{read - kept} of {read} examples are in no part: they equal others of validation or test, "
        "or lie beyond the shares of the split"
    )
    return [DataProblem(message=message, count=1)]


def _write(table: pa.Table, path: Path) -> int:
    """Writes one part, the same bytes for the same table; returns their number."""
    pq.write_table(table.replace_schema_metadata(None).combine_chunks(), path, compression="zstd")
    return path.stat().st_size


def _describe(task: Task, built: Built, directory: Path) -> None:
    description = {
        "task": task.id,
        "digest": built.digest,
        "num_examples": built.num_examples,
        "size_bytes": built.size_bytes,
        "split": MessageToDict(built.split, preserving_proto_field_name=True),
        "statistics": built.statistics,
        "warnings": [MessageToDict(warning, preserving_proto_field_name=True) for warning in built.warnings],
    }
    text = json.dumps(description, indent=2, ensure_ascii=False)
    (directory / DESCRIPTION).write_text(text, encoding="utf-8")


def _loaded(directory: Path, name: str, read: Callable[[Path], Any]) -> Any:
    try:
        return read(directory / name)
    except (OSError, ValueError, KeyError) as error:
        raise DataLoss(f"{name} of the data set is missing or damaged", file=name) from error
