"""COCO: JSON files that list images, categories and annotations, and name each other by numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.archives import Archive
from luthier_object_detection.layouts import Annotated, Box, Found, ImageFinder, Problems, number, part_of, some

_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class _Document:
    path: str
    part: str
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]


def holds(archive: Archive) -> bool:
    """Whether the archive looks like this layout."""
    documents = (archive.read(path) for path in archive.names if path.lower().endswith(".json"))
    return any(all(f'"{name}"'.encode() in content for name in _LISTS) for content in documents)


def read(archive: Archive, errors: Problems, warnings: Problems) -> Found:
    """Reads all files that list images, annotations and categories; JSON of other content is left aside.

    Where there are several, the words of their paths say which part each is: `train`, `val`, `test`.
    """
    documents = _documents(archive, errors)
    if not documents:
        errors.add("", "no JSON file in it lists `images`, `annotations` and `categories`")
    if 0 < sum(not document.part for document in documents) < len(documents):
        for document in documents:
            if not document.part:
                errors.add(document.path, "the file's name does not say which part it is: train, val or test")
    finder = ImageFinder(archive)
    found: list[Annotated] = []
    classes: dict[str, None] = {}
    sources: dict[str, str] = {}
    for document in documents:
        names = _categories(document, errors)
        classes.update(dict.fromkeys(names.values()))
        by_id = _images(document, finder, errors)
        _objects(document, by_id, names, errors)
        for annotated in by_id.values():
            if annotated is None:
                continue
            if sources.get(annotated.image, document.path) != document.path:
                message = f"{annotated.image} is listed by {sources[annotated.image]} too; keep one of them"
                errors.add(document.path, message, field="images.file_name")
            sources[annotated.image] = document.path
            found.append(annotated)
    if documents and (without := [path for path in finder.paths if path not in sources]):
        warnings.add("", f"{len(without)} images are in no list and are left out: {some(without)}", count=len(without))
    return Found(found, list(classes))


def _documents(archive: Archive, errors: Problems) -> list[_Document]:
    """The files of this layout; those that are no JSON are reported."""
    documents = []
    for path in archive.names:
        if not path.lower().endswith(".json"):
            continue
        try:
            content = json.loads(archive.read(path))
        except (ValueError, RecursionError) as error:
            errors.add(path, f"the file is not JSON in UTF-8: {str(error)[:200]}")
            continue
        lists = [content[name] for name in _LISTS if name in content] if isinstance(content, dict) else []
        if len(lists) == len(_LISTS) and all(isinstance(found, list) for found in lists):
            documents.append(_Document(path, part_of(path), *lists))
    if len(documents) == 1:
        return [replace(documents[0], part="")]
    return documents


def _categories(document: _Document, errors: Problems) -> dict[Any, str]:
    """Names by id."""
    names: dict[Any, str] = {}
    for row, entry in _entries(document, "categories", ("id", "name"), errors):
        name = entry["name"].strip() if isinstance(entry["name"], str) else ""
        if not name:
            errors.add(document.path, "a category needs a name", row=row, field="categories.name")
        elif name in names.values():
            errors.add(
                document.path, f"`{name[:80]}` is the name of another category", row=row, field="categories.name"
            )
        if _is_new(names, entry["id"], document, row, "categories", errors):
            names[entry["id"]] = name
    return names


def _images(document: _Document, finder: ImageFinder, errors: Problems) -> dict[Any, Annotated | None]:
    """Images by id, None for one that is not in the archive."""
    by_id: dict[Any, Annotated | None] = {}
    paths: set[str] = set()
    for row, entry in _entries(document, "images", ("id", "file_name"), errors):
        if not _is_new(by_id, entry["id"], document, row, "images", errors):
            continue
        name = entry["file_name"] if isinstance(entry["file_name"], str) else ""
        matching = finder.named(name, document.path, document.part) if name else []
        by_id[entry["id"]] = None
        if len(matching) != 1:
            why = f"several images may be meant: {some(matching)}" if matching else "there is no such image in the zip"
            errors.add(document.path, f"`{name[:80]}`: {why}", row=row, field="images.file_name", kind=why)
        elif matching[0] in paths:
            message = f"`{name[:80]}` is listed twice"
            errors.add(document.path, message, row=row, field="images.file_name", kind="listed twice")
        else:
            paths.add(matching[0])
            width, height = number(entry.get("width")), number(entry.get("height"))
            size = (int(width), int(height)) if width and height else None
            by_id[entry["id"]] = Annotated(matching[0], document.path, document.part, size)
    return by_id


def _objects(document: _Document, by_id: dict[Any, Annotated | None], names: dict[Any, str], errors: Problems) -> None:
    """Adds the annotations to their images."""
    seen: dict[Any, None] = {}
    for row, entry in _entries(document, "annotations", ("image_id", "category_id", "bbox"), errors):

        def report(field: str, message: str, kind: str = "", row: int = row) -> None:
            errors.add(document.path, message, row=row, field=f"annotations.{field}", kind=f"{field}{kind}")

        if "id" in entry and _is_new(seen, entry["id"], document, row, "annotations", errors):
            seen[entry["id"]] = None
        image_id, category_id = entry["image_id"], entry["category_id"]
        if not _is_id(image_id) or image_id not in by_id:
            report("image_id", f"`{str(image_id)[:40]}` is the id of no image")
        if not _is_id(category_id) or category_id not in names:
            report("category_id", f"`{str(category_id)[:40]}` is the id of no category")
        bbox = entry["bbox"]
        values = [number(value) for value in bbox] if isinstance(bbox, list) and len(bbox) == 4 else [None]
        if None in values:
            report("bbox", f"`{str(bbox)[:80]}` is not four finite numbers: x, y, width, height")
            continue
        annotated = by_id.get(image_id) if _is_id(image_id) else None
        if annotated is not None and _is_id(category_id) and category_id in names:
            left, top, width, height = (value or 0.0 for value in values)
            corners = (left, top, left + width, top + height)
            crowd = entry.get("iscrowd") in (1, True)
            box = Box(names[category_id], corners, crowd=crowd, row=row, field="annotations.bbox")
            annotated.boxes.append(box)


def _entries(document: _Document, name: str, keys: Sequence[str], errors: Problems) -> list[tuple[int, dict[str, Any]]]:
    """The entries of a list with their numbers from 1; those that lack a key are reported."""
    entries = []
    for row, entry in enumerate(getattr(document, name), 1):
        if not isinstance(entry, dict):
            errors.add(document.path, "the entry is not an object", row=row, field=name)
        elif missing := [key for key in keys if key not in entry]:
            errors.add(document.path, f"the entry lacks {', '.join(missing)}", row=row, field=name)
        else:
            entries.append((row, entry))
    return entries


def _is_new(known: dict[Any, Any], id: Any, document: _Document, row: int, name: str, errors: Problems) -> bool:
    """Whether an id is one that nothing else has; reports it otherwise."""
    if not _is_id(id):
        errors.add(document.path, f"`{str(id)[:40]}` is not an id", row=row, field=f"{name}.id")
    elif id in known:
        errors.add(
            document.path, f"the id `{str(id)[:40]}` occurs twice", row=row, field=f"{name}.id", kind=f"{name} id twice"
        )
    else:
        return True
    return False


def _is_id(id: Any) -> bool:
    return isinstance(id, int | str) and not isinstance(id, bool)
