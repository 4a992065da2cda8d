"""From an archive of any layout to tables of examples: images checked, boxes within them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from luthier import images
from luthier.archives import Archive, open_archive
from luthier.errors import InvalidData
from luthier.task import DataFile, DataProblem
from luthier_object_detection import coco, voc, yolo
from luthier_object_detection.layouts import Annotated, Box, Found, Problems, some

CLASSES = "classes"
"""Role of the table of the classes that the data name, whether or not any object has them."""
READERS: dict[str, Callable[[Archive, Problems, Problems], Found]] = {
    "coco": coco.read,
    "voc": voc.read,
    "yolo": yolo.read,
}
ROUNDING = 1.0
"""Pixels that a box may stick out of its image without being odd: layouts count from 0 or from 1, and round."""
CORNERS = ("x_min", "y_min", "x_max", "y_max")
OBJECT = pa.struct([("label", pa.string()), *((corner, pa.float64()) for corner in CORNERS), ("crowd", pa.bool_())])
SCHEMA = pa.schema([("image", pa.large_binary()), ("name", pa.string()), ("objects", pa.list_(OBJECT))])
"""Columns of the examples."""


def read(file: DataFile) -> Mapping[str, pa.Table]:
    """The tables of an archive by role: parts, or empty where it names none, and the classes.

    Raises InvalidData with every problem of every file in it.
    """
    if file.role == CLASSES:
        message = "the classes come with the data: in COCO's categories or in YOLO's data.yaml"
        raise InvalidData([DataProblem(file=file.name, message=message)])
    errors, warnings = Problems(file.name), Problems(file.name)
    with open_archive(file) as archive:
        layout = file.format or _layout(archive)
        found = READERS[layout](archive, errors, warnings)
        if not found.images and not errors:
            errors.add("", f"there is no annotated image of the layout {layout} in the zip")
        rows = _rows(archive, found.images, file, errors, warnings)
    if errors:
        raise InvalidData(errors.listed())
    file.warnings.extend(warnings.listed())
    tables = {part: pa.Table.from_pylist(listed, SCHEMA) for part, listed in rows.items()}
    return tables | ({CLASSES: pa.table({"name": found.classes})} if found.classes else {})


def _layout(archive: Archive) -> str:
    """The layout of an archive that does not state one; raises InvalidData."""
    if voc.holds(archive):
        return "voc"
    if yolo.holds(archive):
        return "yolo"
    if coco.holds(archive):
        return "coco"
    raise archive.invalid(
        "",
        "none of the layouts is recognised: COCO has a JSON file of images, annotations and categories; VOC has "
        "Annotations/*.xml; YOLO has data.yaml or classes.txt, and labels/*.txt",
    )


def _rows(
    archive: Archive, found: list[Annotated], file: DataFile, errors: Problems, warnings: Problems
) -> dict[str, list[dict[str, Any]]]:
    """Examples by part."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    odd: dict[str, list[str]] = defaultdict(list)
    contents = [archive.read(annotated.image) for annotated in found]
    # Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for annotated, content, header in zip(found, contents, pool.map(_inspected, contents), strict=True):
            if isinstance(header, str):
                (warnings if file.lenient else errors).add(annotated.image, header, field="image")
                continue
            if message := images.misnamed(annotated.image, header):
                warnings.add(annotated.image, message, field="image")
            _check_size(annotated, header, errors)
            objects = [_placed(box, annotated, header, file.options["boxes"], errors, odd) for box in annotated.boxes]
            kept = [entry for entry in objects if entry is not None]
            rows[annotated.part].append({"image": content, "name": annotated.image, "objects": kept})
    for what, places in odd.items():
        warnings.add("", f"{what}: {some(places)}", field="boxes", count=len(places))
    return rows


def _inspected(content: bytes) -> images.Header | str:
    """The header of an image that decodes; of another one, why it does not."""
    try:
        header = images.inspect(content)
        images.decode(content)
    except images.ImageError as error:
        return str(error)
    return header


def _check_size(annotated: Annotated, header: images.Header, errors: Problems) -> None:
    """Reports an image that is not of the stated size: then nothing tells what the boxes are measured in."""
    if annotated.size not in (None, (header.width, header.height)):
        width, height = annotated.size or (0, 0)
        message = (
            f"{annotated.image} is stated as {width}x{height} pixels and is shown as {header.width}x{header.height}"
        )
        errors.add(annotated.source, message, field="size")


def _placed(
    box: Box, annotated: Annotated, header: images.Header, policy: str, errors: Problems, odd: dict[str, list[str]]
) -> dict[str, Any] | None:
    """An object within its image, None where it is left out; notes in `odd` what was done to it."""
    width, height = header.width, header.height
    scale = (width, height, width, height) if annotated.relative else (1, 1, 1, 1)
    corners = [corner * side for corner, side in zip(box.corners, scale, strict=True)]
    left, top, right, bottom = corners
    cut = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    overhang = max(abs(corner - within) for corner, within in zip(corners, cut, strict=True))
    if right <= left or bottom <= top:
        what, kept = "the box has no area", False
    elif cut[2] <= cut[0] or cut[3] <= cut[1]:
        what, kept = "the box lies outside its image", False
    else:
        what, kept = "the box sticks out of its image" if overhang > ROUNDING else "", policy == "clip"
    place = f"{annotated.source} {box.row}"
    if what and policy == "refuse":
        shown = ", ".join(f"{corner:.6g}" for corner in corners)
        message = f"{what} of {width}x{height} pixels: {shown}" if "image" in what else f"{what}: {shown}"
        errors.add(annotated.source, message, row=box.row, field=box.field, kind=f"{annotated.source} {what}")
    elif what:
        odd[f"{what}, and is {'cut to it' if kept else 'left out'}"].append(place)
    if what and not kept:
        return None
    return {"label": box.label, **dict(zip(CORNERS, cut, strict=True)), "crowd": box.crowd}
