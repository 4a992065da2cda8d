"""What is in a data set of labelled texts, and what is wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from luthier.distribution import spread
from luthier.task import DataProblem

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 5
"""Examples that a message names."""


def problems(parts: Mapping[str, pa.Table]) -> Iterator[tuple[bool, DataProblem]]:
    """Yields each problem as (fatal, problem)."""
    texts = {part: [_normal(text) for text in table["text"].to_pylist()] for part, table in parts.items()}
    labels = {part: table["label"].to_pylist() for part, table in parts.items()}
    yield from _empty(texts, labels)
    yield from _classes(labels)
    yield from _contradictions(texts, labels)
    yield from _leaks(texts)


def statistics(parts: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Examples of each class by part, and how long the texts are in characters."""
    counts = {part: Counter(table["label"].to_pylist()) for part, table in parts.items()}
    classes = sorted(set().union(*counts.values()))
    lengths = [len(text) for table in parts.values() for text in table["text"].to_pylist()]
    return {
        "classes": [{"label": name, **{part: counts[part][name] for part in parts}} for name in classes],
        "text_characters": spread(lengths),
    }


def _empty(texts: Mapping[str, list[str]], labels: Mapping[str, list[str]]) -> Iterator[tuple[bool, DataProblem]]:
    for field, columns in (("text", texts), ("label", labels)):
        for part, values in columns.items():
            if count := sum(not value.strip() for value in values):
                message = (
                    f"{count} of the {len(values)} examples of {part} have an empty {field}; remove or complete them"
                )
                yield True, DataProblem(field=field, message=message, count=count)


def _classes(labels: Mapping[str, list[str]]) -> Iterator[tuple[bool, DataProblem]]:
    known = Counter(labels["train"])
    if len(known) < 2:
        message = f"train has {len(known)} class{'es' if not known else ''} ({_some(known)}); at least 2 are needed"
        yield True, DataProblem(field="label", message=message)
    for part, values in labels.items():
        if unknown := sorted(set(values) - known.keys()):
            message = f"{part} has classes that train lacks: {_some(unknown)}; add examples of them to train"
            yield True, DataProblem(field="label", message=message, count=len(unknown))
    if rare := [name for name, count in known.items() if count < 2]:
        message = f"{len(rare)} classes have one example in train: {_some(rare)}; they can hardly be learned"
        yield False, DataProblem(field="label", message=message, count=len(rare))


def _contradictions(
    texts: Mapping[str, list[str]], labels: Mapping[str, list[str]]
) -> Iterator[tuple[bool, DataProblem]]:
    labels_of = defaultdict(set)
    for part in texts:
        for text, label in zip(texts[part], labels[part], strict=True):
            labels_of[text].add(label)
    if torn := [text for text, found in labels_of.items() if len(found) > 1]:
        message = f"{len(torn)} texts have more than one label: {_some(torn)}"
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
