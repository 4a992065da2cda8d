"""What is in a data set of images with masks, and what is wrong with it as a whole."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier import images
from luthier.distribution import spread
from luthier.task import DataProblem
from luthier_semantic_segmentation.label_maps import MAX_CLASSES

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = ("train", "validation", "test")
SHOWN = 5
"""Names that a message lists."""


def problems(parts: Mapping[str, pa.Table]) -> Iterator[tuple[bool, DataProblem]]:
    """Yields each problem as (fatal, problem)."""
    pixels = {part: class_pixels(parts[part]) for part in PARTS}
    yield from _classes(pixels)
    yield from _unlabelled(parts)
    yield from _leaks(parts)


def statistics(parts: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Pixels of each class by part, and the images' sizes."""
    pixels = {part: class_pixels(parts[part]) for part in PARTS}
    sizes = [_size(mask) for part in PARTS for mask in _column(parts[part], "mask")]
    return {
        "classes": [
            {"label": label, **{part: pixels[part][label] for part in PARTS}} for label in labels_of(parts["train"])
        ],
        "width_pixels": spread([width for _, width in sizes]),
        "height_pixels": spread([height for height, _ in sizes]),
    }


def labels_of(examples: pa.Table) -> list[str]:
    """The classes that occur in the masks, in the order of their least values, and of their names where those tie."""
    least: dict[str, int] = {}
    for values, labels in zip(*(_column(examples, name) for name in ("values", "labels")), strict=True):
        for value, label in zip(values, labels, strict=True):
            least[label] = min(value, least.get(label, value))
    return sorted(least, key=lambda label: (least[label], label))


def class_pixels(examples: pa.Table) -> Counter[str]:
    """Pixels of each class."""
    counts: Counter[str] = Counter()
    for mask, values, labels in zip(*(_column(examples, name) for name in ("mask", "values", "labels")), strict=True):
        pixels = np.bincount(images.decode_values(mask).ravel(), minlength=256)
        for value, label in zip(values, labels, strict=True):
            counts[label] += int(pixels[value])
    return counts


def _classes(pixels: Mapping[str, Counter[str]]) -> Iterator[tuple[bool, DataProblem]]:
    known = {label for label, count in pixels["train"].items() if count}
    if len(known) < 2:
        message = (
            f"the masks of train show {len(known)} class{'' if len(known) == 1 else 'es'} ({_some(sorted(known))}); "
            "at least 2 are needed, of which one may be the background"
        )
        yield True, DataProblem(field="mask", message=message)
    if len(known) > MAX_CLASSES:
        message = f"the masks of train show {len(known)} classes; at most {MAX_CLASSES} are taken"
        yield True, DataProblem(field="mask", message=message)
    for part in ("validation", "test"):
        if unknown := sorted(label for label, count in pixels[part].items() if count and label not in known):
            message = f"{part} shows classes that train lacks and no model can learn: {_some(unknown)}"
            yield False, DataProblem(field="mask", message=message, count=len(unknown))


def _unlabelled(parts: Mapping[str, pa.Table]) -> Iterator[tuple[bool, DataProblem]]:
    for part in PARTS:
        empty = [
            name
            for name, values in zip(*(_column(parts[part], name) for name in ("name", "values")), strict=True)
            if not values
        ]
        if empty:
            message = f"all pixels of {len(empty)} masks of {part} are to be ignored: {_some(empty)}"
            yield False, DataProblem(field="mask", message=message, count=len(empty))


def _leaks(parts: Mapping[str, pa.Table]) -> Iterator[tuple[bool, DataProblem]]:
    digests = {part: {hashlib.sha256(image).digest() for image in _column(parts[part], "image")} for part in PARTS}
    for part in ("validation", "test"):
        if shared := digests[part] & digests["train"]:
            message = f"{len(shared)} images of {part} are also in train; its scores will flatter"
            yield False, DataProblem(field="image", message=message, count=len(shared))


def _size(mask: bytes) -> tuple[int, int]:
    header = images.inspect(mask)
    return header.height, header.width


def _column(table: pa.Table, name: str) -> Iterator[Any]:
    """The values of a column one by one, so that all images are never in memory at once."""
    for chunk in table[name].chunks:
        for value in chunk:
            yield value.as_py()


def _some(names: Iterable[str]) -> str:
    """The first few, cut short, for a message."""
    listed = list(names)
    more = ", …" if len(listed) > SHOWN else ""
    return ", ".join(f"`{name if len(name) <= 60 else name[:59] + '…'}`" for name in listed[:SHOWN]) + more
