"""The layout `coco`: images, and JSON files of instances whose polygons and run lengths become masks.

Larger instances are painted first and smaller ones over them, equal ones in the order of the file; what none covers is
the class `background`. Files called train, val or test, or in folders that are, divide the examples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from luthier import images
from luthier.archives import Archive
from luthier.task import DataFile
from luthier_semantic_segmentation.rows import Problems, Row, check_image, part_of, warn

BACKGROUND = "background"
"""The class of value 0."""
MAX_CATEGORIES = 254
"""Beside the background."""
FAR = 10_000
"""How many pixels outside an image a polygon may reach."""


@dataclass
class _Picture:
    """An image as a JSON file describes it."""

    id: int
    path: str
    """Of the image in the archive."""
    source: str
    """Path of the JSON file."""
    height: int
    width: int
    annotations: list[Mapping[str, Any]] = field(default_factory=list)


def is_one(archive: Archive) -> bool:
    """Whether there is any JSON file of instances."""
    return any(True for _ in _files(archive))


def read(file: DataFile, archive: Archive) -> dict[str, list[Row]]:
    """Reads all examples by part; raises InvalidData with every problem of the archive."""
    problems = Problems(file)
    contents = dict(_files(archive))
    if not contents:
        problems.add("", "", "no JSON file in it has `images`, `annotations` and `categories`")
    names = _names(contents, problems)
    value_of = {name: value for value, name in enumerate(names)}
    pictures = [
        picture for path, content in contents.items() for picture in _pictures(path, content, archive, problems)
    ]
    owners: dict[str, _Picture] = {}
    for picture in pictures:
        if (owner := owners.setdefault(picture.path, picture)) is not picture:
            message = f"image {picture.id} is {picture.path}, and so is image {owner.id} of {owner.source}"
            problems.add(picture.source, "images", message)
    rows: dict[str, list[Row]] = {}
    warnings: dict[str, str] = {}
    for picture in pictures:
        categories = {
            entry["id"]: entry["name"] for entry in contents[picture.source]["categories"] if _is_named(entry)
        }
        data = archive.read(picture.path)
        try:
            size, warning = check_image(data, picture.path)
        except images.ImageError as error:
            problems.leave_out(picture.path, "image", str(error))
            continue
        if size != (picture.height, picture.width):
            message = (
                f"image {picture.id} has {picture.width}x{picture.height} pixels here, "
                f"{picture.path} {size[1]}x{size[0]} as it is shown"
            )
            problems.add(picture.source, "images", message)
            continue
        if warning:
            warnings[picture.path] = warning
        mask = _mask(picture, {id: value_of[name] for id, name in categories.items()}, problems)
        values = np.unique(mask).tolist()
        row = Row(data, images.encode_png(mask), values, [names[value] for value in values], picture.path)
        rows.setdefault(part_of(picture.source), []).append(row)
    problems.check()
    warn(file, warnings)
    return rows


def _files(archive: Archive) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The JSON files of instances by their paths. Others, such as captions, have no categories."""
    for path in archive.names:
        if path.lower().endswith(".json"):
            try:
                content = json.loads(archive.read(path))
            except (ValueError, RecursionError) as error:
                raise archive.invalid(path, f"it is not JSON: {error}") from error
            if isinstance(content, dict) and all(
                isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
            ):
                yield path, content


def _names(contents: Mapping[str, Mapping[str, Any]], problems: Problems) -> list[str]:
    """The classes of all files in the order of their values, the background first."""
    names = {BACKGROUND: None}
    for path, content in contents.items():
        entries = [entry for entry in content["categories"] if _is_named(entry)]
        if nameless := len(content["categories"]) - len(entries):
            problems.add(path, "categories", f"{nameless} categories lack an `id`, a whole number, or a `name`")
        ids = [entry["id"] for entry in entries]
        if len(set(ids)) < len(ids):
            problems.add(path, "categories", "an id stands in it twice")
        names |= dict.fromkeys(entry["name"] for entry in sorted(entries, key=lambda entry: entry["id"]))
    if len(names) - 1 > MAX_CATEGORIES:
        problems.add("", "categories", f"there are {len(names) - 1} categories; at most {MAX_CATEGORIES} are taken")
        problems.check()
    return list(names)


def _is_named(entry: Any) -> bool:
    return _has(entry, id=int, name=str) and bool(entry["name"])


def _has(entry: Any, **types: type) -> bool:
    """Whether an entry of a JSON file is an object with such fields."""
    return isinstance(entry, dict) and all(type(entry.get(name)) is kind for name, kind in types.items())


def _pictures(path: str, content: Mapping[str, Any], archive: Archive, problems: Problems) -> list[_Picture]:
    """The images of a JSON file with their annotations."""
    found: dict[int, _Picture] = {}
    listed: set[int] = set()
    places = _Places(archive)
    for entry in content["images"]:
        if not _has(entry, id=int, file_name=str, height=int, width=int):
            problems.add(path, "images", f"`{str(entry)[:60]}` lacks `id`, `file_name`, `height` or `width`")
            continue
        image = places.find(path, entry["file_name"])
        if entry["id"] in listed:
            problems.add(path, "images", f"the id {entry['id']} stands in it twice")
        elif image is None:
            problems.add(path, "images", f"{entry['file_name'][:80]} is not in the zip, or in several of its folders")
        else:
            found[entry["id"]] = _Picture(entry["id"], image, path, entry["height"], entry["width"])
        listed.add(entry["id"])
    categories = {entry["id"] for entry in content["categories"] if _is_named(entry)}
    for entry in content["annotations"]:
        if not _has(entry, image_id=int, category_id=int):
            problems.add(path, "annotations", f"`{str(entry)[:60]}` lacks `image_id` or `category_id`")
        elif entry["image_id"] not in listed:
            problems.add(path, "annotations", f"{_called(entry)} is of an image that is not there, {entry['image_id']}")
        elif entry["category_id"] not in categories:
            message = f"{_called(entry)} is of a category that is not there, {entry['category_id']}"
            problems.add(path, "annotations", message)
        elif entry["image_id"] in found:
            found[entry["image_id"]].annotations.append(entry)
    return list(found.values())


class _Places:
    """Where an archive's images are."""

    def __init__(self, archive: Archive) -> None:
        self._by_name: dict[str, list[str]] = {}
        for path in archive.names:
            if PurePosixPath(path).suffix[1:].lower() in images.ENDINGS:
                self._by_name.setdefault(PurePosixPath(path).name, []).append(path)

    def find(self, source: str, file_name: str) -> str | None:
        """The image that a JSON file calls so: by its whole path, the end of it, its part or its name, if it is one."""
        wanted = PurePosixPath(file_name.replace("\\", "/"))
        same = self._by_name.get(wanted.name, [])
        below = [path for path in same if f"/{path}".endswith(f"/{wanted}")]
        for matching in (
            [path for path in same if PurePosixPath(path) == PurePosixPath(source).parent / wanted],
            below,
            [path for path in below if part_of(path.rpartition("/")[0]) == part_of(source)],
            same,
        ):
            if len(matching) == 1:
                return matching[0]
        return None


def _mask(picture: _Picture, value_of: Mapping[int, int], problems: Problems) -> np.ndarray:
    """Paints an image's annotations: uint8 [height, width]."""
    painted: list[tuple[int, int, np.ndarray]] = []
    for entry in picture.annotations:
        try:
            region = _region(entry.get("segmentation"), picture.height, picture.width)
        except ValueError as error:
            problems.add(picture.source, "annotations", f"{_called(entry)}: {error}")
        else:
            painted.append((int(region.sum()), value_of[entry["category_id"]], region))
    mask = np.zeros((picture.height, picture.width), dtype=np.uint8)
    for _, value, region in sorted(painted, key=lambda one: -one[0]):
        mask[region] = value
    return mask


def _region(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Where an annotation is, bool [height, width]; raises ValueError."""
    if isinstance(segmentation, dict):
        return _of_run_lengths(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("it has no `segmentation`, which is a list of polygons or run lengths")
    return _of_polygons(segmentation, height, width)


def _of_polygons(polygons: Sequence[Any], height: int, width: int) -> np.ndarray:
    from pycocotools import mask as coco_mask

    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is a list of at least three points, x and y by turns")
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in polygon):
            raise ValueError("a polygon's coordinates are not all numbers")
        if min(polygon) < -FAR or max(polygon) > max(height, width) + FAR:
            raise ValueError(f"a polygon reaches from {min(polygon):g} to {max(polygon):g}, far outside the image")
    # Told by their list lengths, pycocotools would take polygons of four numbers for boxes; there are none left here.
    encoded = coco_mask.frPyObjects([[float(number) for number in polygon] for polygon in polygons], height, width)
    merged = coco_mask.merge(encoded)
    return _of_run_lengths({"size": [height, width], "counts": merged["counts"].decode("ascii")}, height, width)


def _of_run_lengths(segmentation: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Run lengths as a list, or as COCO's text of them. They are read here, for pycocotools trusts their sum."""
    if segmentation.get("size") != [height, width]:
        raise ValueError(f"its run lengths are of the size {segmentation.get('size')}, the image of {[height, width]}")
    counts = segmentation.get("counts")
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and 0 <= run <= height * width for run in runs):
        raise ValueError("its `counts` are not run lengths")
    if sum(runs) != height * width:
        raise ValueError(f"its run lengths add up to {sum(runs)} pixels, the image has {height * width}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _decompressed(text: str) -> list[int]:
    """The run lengths of COCO's text, as `rleFrString` of its maskApi.c reads it; raises ValueError."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError("its `counts` are no run lengths as COCO writes them")
        value |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:
            if digit & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _called(entry: Mapping[str, Any]) -> str:
    return f"annotation {str(entry['id'])[:40]}" if "id" in entry else "an annotation without an id"
