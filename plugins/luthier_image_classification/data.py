"""What is in a data set of labelled images, and what is wrong with it beyond single files."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from luthier import images
from luthier.distribution import spread
from luthier.task import DataProblem

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 5
"""Examples that a message names."""


def problems(parts: Mapping[str, pa.Table]) -> Iterator[tuple[bool, DataProblem]]:
    """Yields each problem as (fatal, problem)."""
    labels = {part: table["label"].to_pylist() for part, table in parts.items()}
    contents = {part: [_digest(image) for image in table["image"].to_pylist()] for part, table in parts.items()}
    names = _names(parts, contents)
    yield from _empty(labels)
    yield from _classes(labels)
    yield from _contradictions(contents, labels, names)
    yield from _leaks(contents, names)


def statistics(parts: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Examples of each class by part; of the images their sizes in pixels, formats and the share of grey ones."""
    counts = {part: Counter(table["label"].to_pylist()) for part, table in parts.items()}
    classes = sorted(set().union(*counts.values()))
    headers = [images.inspect(image) for table in parts.values() for image in table["image"].to_pylist()]
    grey = sum(header.mode in images.GREY_MODES for header in headers)
    return {
        "classes": [{"label": name, **{part: counts[part][name] for part in parts}} for name in classes],
        "formats": dict(sorted(Counter(header.format for header in headers).items())),
        "grey_share": round(grey / max(1, len(headers)), 4),
        "width_pixels": spread([header.width for header in headers]),
        "height_pixels": spread([header.height for header in headers]),
    }


def some(names: Iterable[str]) -> str:
    """The first few, cut short, for a message."""
    listed = list(names)
    more = ", …" if len(listed) > SHOWN else ""
    return ", ".join(f"`{name if len(name) <= 60 else '…' + name[-59:]}`" for name in listed[:SHOWN]) + more


def _names(parts: Mapping[str, pa.Table], contents: Mapping[str, list[bytes]]) -> dict[bytes, str]:
    """What to call the image of a digest: the names it has, or its first place."""
    names: dict[bytes, list[str]] = defaultdict(list)
    for part, table in parts.items():
        given = table["name"].to_pylist() if "name" in table.column_names else [""] * table.num_rows
        for number, (digest, name) in enumerate(zip(contents[part], given, strict=True), 1):
            names[digest].append(name or f"{part} {number}")
    return {digest: " = ".join(listed[:2]) for digest, listed in names.items()}


def _empty(labels: Mapping[str, list[str]]) -> Iterator[tuple[bool, DataProblem]]:
    for part, values in labels.items():
        if count := sum(not value.strip() for value in values):
            message = f"{count} of the {len(values)} examples of {part} have an empty label; remove or complete them"
            yield True, DataProblem(field="label", message=message, count=count)


def _classes(labels: Mapping[str, list[str]]) -> Iterator[tuple[bool, DataProblem]]:
    known = Counter(labels["train"])
    if len(known) < 2:
        message = f"train has {len(known)} class{'es' if not known else ''} ({some(known)}); at least 2 are needed"
        yield True, DataProblem(field="label", message=message)
    for part, values in labels.items():
        if unknown := sorted(set(values) - known.keys()):
            message = f"{part} has classes that train lacks: {some(unknown)}; add examples of them to train"
            yield True, DataProblem(field="label", message=message, count=len(unknown))
    if rare := [name for name, count in known.items() if count < 2]:
        message = f"{len(rare)} classes have one example in train: {some(rare)}; they can hardly be learned"
        yield False, DataProblem(field="label", message=message, count=len(rare))


def _contradictions(
    contents: Mapping[str, list[bytes]], labels: Mapping[str, list[str]], names: Mapping[bytes, str]
) -> Iterator[tuple[bool, DataProblem]]:
    labels_of = defaultdict(set)
    for part in contents:
        for digest, label in zip(contents[part], labels[part], strict=True):
            labels_of[digest].add(label)
    if torn := [names[digest] for digest, found in labels_of.items() if len(found) > 1]:
        message = f"{len(torn)} images have more than one label: {some(torn)}"
        yield False, DataProblem(field="label", message=message, count=len(torn))


def _leaks(contents: Mapping[str, list[bytes]], names: Mapping[bytes, str]) -> Iterator[tuple[bool, DataProblem]]:
    known = set(contents["train"])
    for part, digests in contents.items():
        if part != "train" and (shared := known.intersection(digests)):
            listed = some(sorted(names[digest] for digest in shared))
            message = f"{len(shared)} images of {part} are also in train: {listed}; its scores will flatter"
            yield False, DataProblem(field="image", message=message, count=len(shared))


def _digest(image: bytes) -> bytes:
    return hashlib.blake2b(image, digest_size=16).digest()
