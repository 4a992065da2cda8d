"""Examples as tables and as values, and reading them from JSONL and Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.errors import InvalidData
from luthier.tabular import Problems
from luthier.task import DataFile

Entity = tuple[int, int, str]
"""First code point, the first one behind, type."""
Example = tuple[str, list[Entity]]
"""A text and its entities in order of their place."""

SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "entities": pa.list_(pa.struct({"start": pa.int64(), "end": pa.int64(), "label": pa.string()})),
    }
)
_FIELDS = ("start", "end", "label")
_BATCH = 1 << 14


def table_of(examples: Iterable[Example]) -> pa.Table:
    """Examples as a table."""
    rows = list(examples)
    return pa.table(
        {
            "text": [text for text, _ in rows],
            "entities": [[dict(zip(_FIELDS, one, strict=True)) for one in entities] for _, entities in rows],
        },
        SCHEMA,
    )


def entities_of(table: pa.Table) -> list[list[Entity]]:
    """The entities of each row of a table of examples."""
    return [[(one["start"], one["end"], one["label"]) for one in row] for row in table["entities"].to_pylist()]


def read(file: DataFile) -> pa.Table:
    """Reads a JSONL or Parquet file; raises InvalidData with every problem, by row and field."""
    problems = Problems(file.name)
    records = (_parquet if file.format == "parquet" else _jsonl)(file, problems)
    names = {field: file.columns.get(field, field) for field in SCHEMA.names}
    found: dict[str, None] = {}
    rows, examples = [], []
    for row, record in records:
        rows.append(row)
        found |= dict.fromkeys(record)
        text = _text(record.get(names["text"]), row, problems)
        examples.append((text or "", _entities(record.get(names["entities"]), text, row, problems)))
    if missing := {field: name for field, name in names.items() if name not in found and examples}:
        # Every row lacks it, so that is all there is to say.
        problems = Problems(file.name)
        listed = ", ".join(f"`{name[:40]}`" for name in found)
        free = next((name[:40] for name in found if name not in names.values()), "COLUMN")
        for field, name in missing.items():
            message = f"there is no column `{name}`; the file has {listed}; "
            problems.add(0, field, f"{message}say which one it is, for instance --column {field}={free}")
    elif not examples and not problems:
        problems.add(0, "", "the file is empty")
    if left_out := problems.settle(file):
        examples = [example for row, example in zip(rows, examples, strict=True) if row not in left_out]
        if not examples:
            raise InvalidData(problems.listed())
    return table_of(examples)


def _jsonl(file: DataFile, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and object of each line that is not blank."""
    with file.path.open("rb") as stream:
        for row, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8-sig" if row == 1 else "utf-8").strip()
                record = json.loads(text) if text else {}
            except UnicodeDecodeError:
                problems.add(row, "", "the line is not UTF-8 text; save the file as UTF-8")
            except (json.JSONDecodeError, RecursionError) as error:
                problems.add(row, "", f"the line is not JSON: {error}")
            else:
                if not isinstance(record, dict):
                    problems.add(row, "", "the line is not a JSON object")
                elif text:
                    yield row, record


def _parquet(file: DataFile, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and values of each row."""
    try:
        parquet = pq.ParquetFile(file.path)
    except (pa.ArrowInvalid, OSError) as error:
        problems.add(0, "", f"the file is not Parquet: {str(error).splitlines()[0]}")
        return
    start = 1
    for batch in parquet.iter_batches(_BATCH):
        yield from enumerate(batch.to_pylist(), start)
        start += batch.num_rows


def _text(value: Any, row: int, problems: Problems) -> str | None:
    """The text of a row, or None where there is none, which is reported."""
    if value is None:
        problems.add(row, "text", "there is no value")
    elif not isinstance(value, str):
        problems.add(row, "text", f"{_shown(value)} is not text")
    elif not _is_unicode(value):
        problems.add(row, "text", "the text holds half of a surrogate pair, which is no character")
    else:
        return value
    return None


def _entities(value: Any, text: str | None, row: int, problems: Problems) -> list[Entity]:
    """The entities of a row in order; whatever is wrong with one is reported."""
    if value is None:
        return []
    if not isinstance(value, list):
        problems.add(row, "entities", f"{_shown(value)} is no list of entities")
        return []
    found = [entity for one in value if (entity := _entity(one, text, row, problems))]
    found.sort()
    for (start, end, label), (start2, end2, label2) in pairwise(found):
        if start2 < end:
            message = f"[{start}, {end}) `{label}` and [{start2}, {end2}) `{label2}` overlap; keep one of them"
            problems.add(row, "entities", message)
    return found


def _entity(value: Any, text: str | None, row: int, problems: Problems) -> Entity | None:
    values = [value.get(name) for name in _FIELDS] if isinstance(value, dict) else value
    if not isinstance(values, list) or len(values) != len(_FIELDS) or None in values:
        why = "is no entity: write an object with start, end and label, or a list of the three"
        problems.add(row, "entities", f"{_shown(value)} {why}")
        return None
    start, end, label = values
    if type(start) is not int or type(end) is not int:
        why = f"{_shown(value)}: start and end are not whole numbers"
    elif not isinstance(label, str) or not label.strip() or not _is_unicode(label):
        why = f"{_shown(value)}: the label is empty or no text"
    elif start >= end:
        why = f"[{start}, {end}) is empty: end is the first character behind the entity"
    elif start < 0:
        why = f"[{start}, {end}) begins before the text"
    elif text is not None and end > len(text):
        why = f"[{start}, {end}) ends behind the text, which has {len(text)} characters (code points, not bytes)"
    else:
        return start, end, label
    problems.add(row, "entities", why)
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return f"`{text if len(text) <= 60 else text[:59] + '…'}`"


def _is_unicode(text: str) -> bool:
    """Whether a text can be encoded; escapes of JSON can spell half of a pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
