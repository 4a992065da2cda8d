"""What is in a data set of images with boxes, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from luthier import images
from luthier.distribution import spread
from luthier.task import PARTS, DataProblem
from luthier_object_detection.files import CLASSES
from luthier_object_detection.layouts import some

if TYPE_CHECKING:
    import pyarrow as pa


def labels_of(parts: Mapping[str, pa.Table]) -> list[str]:
    """The classes of a model: those with an object in train, in the order in which the data name them, else sorted."""
    learnt = {entry["label"] for entry in _objects(parts["train"]) if not entry["crowd"]}
    named = [name for name in _named(parts) if name in learnt]
    return named + sorted(learnt.difference(named))


def problems(parts: Mapping[str, pa.Table]) -> Iterator[tuple[bool, DataProblem]]:
    """Yields each problem as (fatal, problem)."""
    counts = {part: Counter(entry["label"] for entry in _objects(parts[part])) for part in PARTS}
    learnt = set(labels_of(parts))
    if not learnt:
        message = "no image of train shows an object; there is nothing to learn"
        yield True, DataProblem(field="objects", message=message)
        return
    if idle := [name for name in _named(parts) if name not in learnt]:
        message = f"{len(idle)} classes have no object in train, and are not learnt: {some(idle)}"
        yield False, DataProblem(field="label", message=message, count=len(idle))
    for part in PARTS[1:]:
        if unknown := sorted(counts[part].keys() - learnt):
            message = f"{part} has objects of classes that train lacks, which will count as missed: {some(unknown)}"
            yield False, DataProblem(field="label", message=message, count=len(unknown))
    if rare := [name for name in sorted(learnt) if counts["train"][name] < 5]:
        message = f"{len(rare)} classes have fewer than 5 objects in train; they can hardly be learnt: {some(rare)}"
        yield False, DataProblem(field="label", message=message, count=len(rare))
    yield from _leaks(parts)


def statistics(parts: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Objects of each class by part, images without any, and quantiles of how many, how large and of what image."""
    objects = {part: _objects(parts[part]) for part in PARTS}
    counts = {part: Counter(entry["label"] for entry in found) for part, found in objects.items()}
    classes = [*dict.fromkeys([*_named(parts), *sorted(set().union(*counts.values()))])]
    per_image = [len(listed) for part in PARTS for listed in parts[part]["objects"].to_pylist()]
    sizes = [images.inspect(image) for part in PARTS for image in parts[part]["image"].to_pylist()]
    every = [entry for found in objects.values() for entry in found]
    return {
        "classes": [{"label": name, **{part: counts[part][name] for part in PARTS}} for name in classes],
        "images_without_objects": {part: _empty(parts[part]) for part in PARTS},
        "objects_per_image": spread(per_image),
        "width_pixels": spread([size.width for size in sizes]),
        "height_pixels": spread([size.height for size in sizes]),
        "object_width_pixels": spread([entry["x_max"] - entry["x_min"] for entry in every]),
        "object_height_pixels": spread([entry["y_max"] - entry["y_min"] for entry in every]),
        "crowds": sum(entry["crowd"] for entry in every),
    }


def _objects(table: pa.Table) -> list[dict[str, Any]]:
    return [entry for listed in table["objects"].to_pylist() for entry in listed]


def _named(parts: Mapping[str, pa.Table]) -> list[str]:
    return list(dict.fromkeys(parts[CLASSES]["name"].to_pylist())) if CLASSES in parts else []


def _empty(table: pa.Table) -> int:
    return sum(not listed for listed in table["objects"].to_pylist())


def _leaks(parts: Mapping[str, pa.Table]) -> Iterator[tuple[bool, DataProblem]]:
    """The same image in train and elsewhere."""
    names: dict[bytes, list[str]] = defaultdict(list)
    for image, name in zip(parts["train"]["image"].to_pylist(), parts["train"]["name"].to_pylist(), strict=True):
        names[hashlib.sha256(image).digest()].append(name)
    for part in PARTS[1:]:
        table = parts[part]
        listed = zip(table["image"].to_pylist(), table["name"].to_pylist(), strict=True)
        if shared := [name for image, name in listed if hashlib.sha256(image).digest() in names]:
            message = f"{len(shared)} images of {part} are also in train: {some(shared)}; its scores will flatter"
            yield False, DataProblem(field="image", message=message, count=len(shared))
