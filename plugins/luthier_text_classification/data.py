"""What is in a data set of labelled texts, and what is wrong with it.

The column `label` holds one class of each text, or lists of them where they were read with the option `labels=several`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from luthier import tabular
from luthier.distribution import spread
from luthier.tabular import Column
from luthier.task import DataFile, DataProblem
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb

SHOWN = 5
"""Examples that a message names."""


def read(file: DataFile) -> pa.Table:
    """Reads a file; raises InvalidData with every problem in it."""
    if file.options.get("labels", "one") == "one":
        return tabular.read(file, pb.Example)
    source = file.columns.get("label", "label")
    # Texts may have no label, but the column must be there.
    file = replace(file, columns={**file.columns, "label": source})
    text = Column(name="text", required=True)
    if "," in source:
        flags = tabular.read_columns(file, [text, Column(name="label", type=pa.bool_(), repeated=True)])
        names = [name.strip() for name in source.split(",")]
        labels = [[name for name, holds in zip(names, row, strict=True) if holds] for row in flags["label"].to_pylist()]
        return _with_labels(flags, labels)
    if file.format in ("csv", "tsv"):
        cells = tabular.read_columns(file, [text, Column(name="label")])
        separator = file.options.get("separator") or ","
        return _with_labels(cells, [cell.split(separator) for cell in cells["label"].to_pylist()])
    lists = tabular.read_columns(file, [text, Column(name="label", repeated=True)])
    return _with_labels(lists, lists["label"].to_pylist())


def several(examples: pa.Table) -> bool:
    """Whether the texts have any number of labels."""
    return bool(pa.types.is_list(examples["label"].type))


def labels_of(examples: pa.Table) -> list[list[str]]:
    """The labels of each text."""
    labels = examples["label"].to_pylist()
    return labels if several(examples) else [[label] for label in labels]


def together(examples: pa.Table) -> pa.Table:
    """One text for examples that each give one of its labels, the empty ones aside."""
    labels = sorted({label for label in examples["label"].to_pylist() if label})
    return pa.table({"text": examples["text"].slice(0, 1), "label": pa.array([labels], pa.list_(pa.string()))})


def problems(parts: Mapping[str, pa.Table]) -> Iterator[tuple[bool, DataProblem]]:
    """Yields each problem as (fatal, problem)."""
    texts = {part: [_normal(text) for text in table["text"].to_pylist()] for part, table in parts.items()}
    labels = {part: labels_of(table) for part, table in parts.items()}
    yield from _empty("text", texts)
    yield from _empty("label", {part: [label for row in rows for label in row] for part, rows in labels.items()})
    yield from _classes(labels, least=1 if several(parts["train"]) else 2)
    yield from _contradictions(texts, labels)
    yield from _leaks(texts)


def statistics(parts: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Examples of each class by part, and how long the texts are in characters."""
    labels = {part: labels_of(table) for part, table in parts.items()}
    counts = {part: Counter(label for row in rows for label in row) for part, rows in labels.items()}
    classes = sorted(set().union(*counts.values()))
    lengths = [len(text) for table in parts.values() for text in table["text"].to_pylist()]
    found = {
        "classes": [{"label": name, **{part: counts[part][name] for part in parts}} for name in classes],
        "text_characters": spread(lengths),
    }
    if several(parts["train"]):
        found["labels_of_a_text"] = spread([len(row) for rows in labels.values() for row in rows])
    return found


def _with_labels(examples: pa.Table, labels: Iterable[Iterable[str]]) -> pa.Table:
    """The examples with these labels, each once, without the empty ones."""
    cleaned = [list(dict.fromkeys(name for label in row if (name := label.strip()))) for row in labels]
    return examples.set_column(
        examples.column_names.index("label"), "label", [pa.array(cleaned, pa.list_(pa.string()))]
    )


def _empty(field: str, columns: Mapping[str, list[str]]) -> Iterator[tuple[bool, DataProblem]]:
    for part, values in columns.items():
        if count := sum(not value.strip() for value in values):
            message = f"{count} of the {len(values)} examples of {part} have an empty {field}; remove or complete them"
            yield True, DataProblem(field=field, message=message, count=count)


def _classes(labels: Mapping[str, list[list[str]]], least: int) -> Iterator[tuple[bool, DataProblem]]:
    known = Counter(label for row in labels["train"] for label in row)
    if len(known) < least:
        message = (
            f"train has {len(known)} class{'es' if not known else ''} ({_some(known)}); at least {least} are needed"
        )
        yield True, DataProblem(field="label", message=message)
    for part, rows in labels.items():
        if unknown := sorted({label for row in rows for label in row} - known.keys()):
            message = f"{part} has classes that train lacks: {_some(unknown)}; add examples of them to train"
            yield True, DataProblem(field="label", message=message, count=len(unknown))
    if rare := [name for name, count in known.items() if count < 2]:
        message = f"{len(rare)} classes have one example in train: {_some(rare)}; they can hardly be learned"
        yield False, DataProblem(field="label", message=message, count=len(rare))


def _contradictions(
    texts: Mapping[str, list[str]], labels: Mapping[str, list[list[str]]]
) -> Iterator[tuple[bool, DataProblem]]:
    found_for = defaultdict(set)
    for part in texts:
        for text, row in zip(texts[part], labels[part], strict=True):
            found_for[text].add(frozenset(row))
    if torn := [text for text, found in found_for.items() if len(found) > 1]:
        message = f"{len(torn)} texts are labelled in more than one way: {_some(torn)}"
        yield False, DataProblem(field="label", message=message, count=len(torn))


def _leaks(texts: Mapping[str, list[str]]) -> Iterator[tuple[bool, DataProblem]]:
    known = set(texts["train"])
    for part, values in texts.items():
        if part != "train" and (shared := known.intersection(values)):
            message = (
                f"{len(shared)} texts of {part} are also in train: {_some(sorted(shared))}; its scores will flatter"
            )
            yield False, DataProblem(field="text", message=message, count=len(shared))


def _normal(text: str) -> str:
    """A text without case and with single spaces: two texts with the same are equal."""
    return " ".join(text.casefold().split())


def _some(names: Iterable[str]) -> str:
    """The first few, cut short, for a message."""
    listed = list(names)
    more = ", …" if len(listed) > SHOWN else ""
    return ", ".join(f"`{name if len(name) <= 60 else name[:59] + '…'}`" for name in listed[:SHOWN]) + more
