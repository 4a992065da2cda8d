"""Pascal VOC: one XML file for each image, and lists of names that say which part they belong to.

Corners are taken as they stand, as labelling programs write them: in pixels from the image's upper left corner.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from luthier.archives import Archive
from luthier_object_detection.layouts import Annotated, Box, Found, ImageFinder, Problems, number, some

_LISTS = {"train": "train", "trainval": "train", "val": "validation", "test": "test"}
"""Lists in ImageSets/Main and their parts. `trainval` counts where there is no `train`."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DEEPEST = 50
"""Levels of an XML file that are read; VOC has four."""


def holds(archive: Archive) -> bool:
    """Whether the archive looks like this layout."""
    return any(b"<annotation" in archive.read(path) for path in _documents(archive)[:3])


def read(archive: Archive, errors: Problems, warnings: Problems) -> Found:
    """Reads all annotations. An image whose annotation names no object is kept; one without annotation is left out."""
    finder = ImageFinder(archive)
    parts = _parts(archive, errors)
    found: list[Annotated] = []
    sources: dict[str, str] = {}
    unlisted: list[str] = []
    documents = _documents(archive)
    for path in documents:
        stem = PurePosixPath(path).stem
        if parts is not None and stem not in parts:
            unlisted.append(path)
            continue
        root = _parse(archive.read(path), path, errors)
        annotated = None if root is None else _annotated(root, path, finder, errors)
        if annotated is None:
            continue
        if annotated.image in sources:
            message = f"{annotated.image} is described by {sources[annotated.image]} too; keep one of them"
            errors.add(path, message, field="filename")
        sources[annotated.image] = path
        annotated.part = parts[stem] if parts else ""
        found.append(annotated)
    stems = {PurePosixPath(path).stem for path in documents}
    for stem in parts or {}:
        if stem not in stems:
            errors.add("", f"a list names `{stem[:80]}`, for which there is no annotation", field="ImageSets/Main")
    if unlisted:
        warnings.add(
            "", f"{len(unlisted)} annotations are in no list and are left out: {some(unlisted)}", count=len(unlisted)
        )
    folders = {PurePosixPath(path).parent for path in sources}
    without = [path for path in finder.paths if PurePosixPath(path).parent in folders and path not in sources]
    if without and not unlisted:
        warnings.add(
            "", f"{len(without)} images have no annotation and are left out: {some(without)}", count=len(without)
        )
    return Found(found, [])


def _documents(archive: Archive) -> list[str]:
    return [name for name in archive.names if name.lower().endswith(".xml")]


def _parts(archive: Archive, errors: Problems) -> dict[str, str] | None:
    """The part of each name that a list of ImageSets/Main has; None where there are no lists."""
    lists = {
        PurePosixPath(name).stem: name
        for name in archive.names
        if PurePosixPath(name).parts[-3:-1] == ("ImageSets", "Main") and PurePosixPath(name).stem in _LISTS
    }
    if "train" in lists:
        lists.pop("trainval", None)
    parts: dict[str, str] = {}
    for stem, path in sorted(lists.items()):
        try:
            lines = archive.read(path).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            errors.add(path, "the file is not UTF-8 text; save it as UTF-8")
            continue
        for row, line in enumerate(lines, 1):
            name = line.split()[0] if line.split() else ""
            if name and parts.get(name, _LISTS[stem]) != _LISTS[stem]:
                errors.add(path, f"`{name[:80]}` is in the list of {parts[name]} too", row=row)
            elif name:
                parts[name] = _LISTS[stem]
    return parts if lists else None


def _annotated(root: Element, path: str, finder: ImageFinder, errors: Problems) -> Annotated | None:
    """What a document says; None where it says nothing of an image that is there."""
    name = (root.findtext("filename") or "").strip()
    images = finder.named(name, path, "") or finder.with_stem(PurePosixPath(path).stem, path)
    if len(images) != 1:
        why = f"several images may be meant: {some(images)}" if images else "there is no such image in the zip"
        errors.add(path, f"`{name[:80]}`: {why}", field="filename")
        return None
    width, height = (number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    size = (int(width), int(height)) if width and height else None
    annotated = Annotated(images[0], path, size=size)
    for row, element in enumerate(root.findall("object"), 1):
        box = _box(element, path, row, errors)
        if box:
            annotated.boxes.append(box)
    return annotated


def _box(element: Element, path: str, row: int, errors: Problems) -> Box | None:
    label = (element.findtext("name") or "").strip()
    if not label:
        errors.add(path, "the object has no name", row=row, field="object/name")
    texts = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    corners = [number(text) for text in texts]
    for corner, text, value in zip(_CORNERS, texts, corners, strict=True):
        if value is None:
            message = "there is no value" if text is None else f"`{text.strip()[:40]}` is not a finite number"
            errors.add(path, message, row=row, field=f"object/bndbox/{corner}")
    left, top, right, bottom = corners
    if not label or left is None or top is None or right is None or bottom is None:
        return None
    hard = (element.findtext("difficult") or "").strip() in ("1", "true", "True")
    return Box(label, (left, top, right, bottom), crowd=hard, row=row, field="object/bndbox")


def _parse(content: bytes, path: str, errors: Problems) -> Element | None:
    """The document's root. A document type is refused, and with it every entity: VOC has neither."""
    builder, depth = TreeBuilder(), 0

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type, which is not read")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"its elements are nested more than {_DEEPEST} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        errors.add(path, f"the file is not XML that is read: {error}")
        return None
    root = builder.close()
    if root.tag != "annotation":
        errors.add(path, f"the root is <{root.tag[:40]}>, not <annotation>")
        return None
    return root
