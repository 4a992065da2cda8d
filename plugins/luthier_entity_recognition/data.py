"""What is in a data set of texts with entities, and what is wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.distribution import spread
from luthier.task import DataProblem
from luthier_entity_recognition.examples import Entity, entities_of
from luthier_entity_recognition.words import num_cut

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 5
"""Examples that a message names."""

Problem = tuple[bool, DataProblem]
"""Whether it is fatal, and what it is."""


def problems(parts: Mapping[str, pa.Table]) -> Iterator[Problem]:
    """Yields each problem as (fatal, problem)."""
    texts = {part: table["text"].to_pylist() for part, table in parts.items()}
    entities = {part: entities_of(table) for part, table in parts.items()}
    yield from _empty(texts)
    yield from _labels(entities)
    yield from _cut(texts, entities)
    normal = {part: [_normal(text) for text in values] for part, values in texts.items()}
    yield from _contradictions(normal, texts, entities)
    yield from _leaks(normal)


def statistics(parts: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Entities of each label by part, texts without any, and how long the texts are in characters."""
    entities = {part: entities_of(table) for part, table in parts.items()}
    counts = {part: _count(values) for part, values in entities.items()}
    lengths = [len(text) for table in parts.values() for text in table["text"].to_pylist()]
    return {
        "labels": [{"label": name, **{part: counts[part][name] for part in parts}} for name in _names(counts)],
        "texts_without_entities": {part: sum(not one for one in values) for part, values in entities.items()},
        "text_characters": spread(lengths),
    }


def _empty(texts: Mapping[str, list[str]]) -> Iterator[Problem]:
    for part, values in texts.items():
        if count := sum(not value.strip() for value in values):
            message = f"{count} of the {len(values)} examples of {part} have an empty text; remove or complete them"
            yield True, DataProblem(field="text", message=message, count=count)


def _labels(entities: Mapping[str, list[list[Entity]]]) -> Iterator[Problem]:
    known = _count(entities["train"])
    if not known:
        message = "no example of train has an entity; there is nothing to learn"
        yield True, DataProblem(field="entities", message=message)
    for part, values in entities.items():
        if unknown := sorted(_count(values).keys() - known.keys()):
            message = f"{part} has labels that train lacks, which will never be found: {_some(unknown)}"
            yield False, DataProblem(field="entities", message=message, count=len(unknown))
    if rare := sorted(name for name, count in known.items() if count < 2):
        message = f"{len(rare)} labels have one entity in train: {_some(rare)}; they can hardly be learned"
        yield False, DataProblem(field="entities", message=message, count=len(rare))


def _cut(texts: Mapping[str, list[str]], entities: Mapping[str, list[list[Entity]]]) -> Iterator[Problem]:
    for part, values in entities.items():
        spans = [[(start, end) for start, end, _ in one] for one in values]
        if count := num_cut(texts[part], spans, joined=False):
            message = (
                f"{count} entities of {part} begin or end within a word or with a space; whole words are learned and "
                "predicted, so these will be missed"
            )
            yield False, DataProblem(field="entities", message=message, count=count)


def _contradictions(
    normal: Mapping[str, list[str]], texts: Mapping[str, list[str]], entities: Mapping[str, list[list[Entity]]]
) -> Iterator[Problem]:
    found = defaultdict(set)
    for part in texts:
        for key, text, spans in zip(normal[part], texts[part], entities[part], strict=True):
            found[key].add(tuple((_normal(text[start:end]), label) for start, end, label in spans))
    if torn := [key for key, different in found.items() if len(different) > 1]:
        message = f"{len(torn)} texts occur with different entities: {_some(torn)}"
        yield False, DataProblem(field="entities", message=message, count=len(torn))


def _leaks(normal: Mapping[str, list[str]]) -> Iterator[Problem]:
    known = set(normal["train"])
    for part, values in normal.items():
        if part != "train" and (shared := known.intersection(values)):
            message = (
                f"{len(shared)} texts of {part} are also in train: {_some(sorted(shared))}; its scores will flatter"
            )
            yield False, DataProblem(field="text", message=message, count=len(shared))


def _count(entities: Iterable[Sequence[Entity]]) -> Counter[str]:
    return Counter(label for one in entities for _, _, label in one)


def _names(counts: Mapping[str, Counter[str]]) -> list[str]:
    return sorted(set().union(*counts.values()))


def _normal(text: str) -> str:
    """A text without case and with single spaces: two texts with the same are equal."""
    return " ".join(text.casefold().split())


def _some(names: Iterable[str]) -> str:
    """The first few, cut short, for a message."""
    listed = list(names)
    more = ", …" if len(listed) > SHOWN else ""
    return ", ".join(f"`{name if len(name) <= 60 else name[:59] + '…'}`" for name in listed[:SHOWN]) + more
