"""YOLO: a text file of `class centre_x centre_y width height` for each image, in shares of its sides, and `data.yaml`.

The labels of `…/images/…/a.jpg` are in `…/labels/…/a.txt`, or beside the image. An image without such a file, or with
an empty one, shows no object. A line of more numbers is a polygon, whose extent is the box.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import yaml

from luthier.archives import Archive
from luthier.task import PARTS
from luthier_object_detection.layouts import Annotated, Box, Found, Problems, is_image, number, part_of, some

_LISTS = ("classes.txt", "obj.names", "classes.names")
"""Files of one class name a line, where there is no data.yaml."""
_KEYS = {"train": "train", "val": "validation", "test": "test"}
"""Keys of data.yaml and their parts."""
_MOST_YAML_BYTES = 2**20
_MOST_SHARE = 2.0
"""A larger number is none of normalised coordinates, not even of a box that leaves the image."""


def holds(archive: Archive) -> bool:
    """Whether the archive looks like this layout."""
    return bool(_named(archive, _LISTS)) or bool(_yaml_files(archive))


def read(archive: Archive, errors: Problems, warnings: Problems) -> Found:
    """Reads all images with their labels; parts come from data.yaml, or from the names of the folders."""
    names, folders = _classes(archive, errors)
    labels = {name for name in archive.names if name.endswith(".txt") and PurePosixPath(name).name not in _LISTS}
    found: list[Annotated] = []
    taken: set[str] = set()
    for path in filter(is_image, archive.names):
        source = next((label for label in _label_paths(path) if label in labels), "")
        if source in taken and source:
            errors.add(path, f"another image has the labels {source} too; keep one of them")
        taken.add(source)
        annotated = Annotated(path, source, _part(path, folders), relative=True)
        if source:
            annotated.boxes = _boxes(archive.read(source), source, names, errors)
        found.append(annotated)
    lists = {path for path in labels if part_of(PurePosixPath(path).stem) and "labels" not in PurePosixPath(path).parts}
    for path in sorted(labels - taken - lists):
        if "labels" in PurePosixPath(path).parts:
            errors.add(path, "there is no image to these labels")
    if found and not taken - {""}:
        errors.add("", "none of the images has labels: put those of `images/a.jpg` into `labels/a.txt`")
    if any(image.part for image in found):
        without = [image.image for image in found if not image.part]
        if without:
            warnings.add(
                "", f"{len(without)} images are in no part and are left out: {some(without)}", count=len(without)
            )
        found = [image for image in found if image.part]
    return Found(found, names)


def _classes(archive: Archive, errors: Problems) -> tuple[list[str], dict[str, list[str]]]:
    """The classes by their numbers, and the folders or lists of each part as data.yaml names them."""
    if files := _yaml_files(archive):
        return _described(archive, files[0], errors)
    lists = _named(archive, _LISTS)
    if not lists:
        errors.add("", "neither data.yaml nor classes.txt says what the classes are called")
        return [], {}
    try:
        lines = archive.read(lists[0]).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        errors.add(lists[0], "the file is not UTF-8 text; save it as UTF-8")
        return [], {}
    while lines and not lines[-1].strip():
        lines.pop()
    return _checked(lists[0], [line.strip() for line in lines], errors), {}


def _described(archive: Archive, path: str, errors: Problems) -> tuple[list[str], dict[str, list[str]]]:
    """What data.yaml says."""
    try:
        if archive.size(path) > _MOST_YAML_BYTES:
            raise ValueError(f"it has more than {_MOST_YAML_BYTES} bytes")
        content = yaml.safe_load(archive.read(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        errors.add(path, f"the file is not YAML that is read: {' '.join(str(error).split())[:200]}")
        return [], {}
    content = content if isinstance(content, dict) else {}
    names = content.get("names")
    if isinstance(names, dict):
        if names.keys() != set(range(len(names))):
            errors.add(path, f"the classes are not numbered from 0 to {len(names) - 1}", field="names")
            return [], {}
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        errors.add(path, "`names` must list the classes", field="names")
        return [], {}
    count = content.get("nc", len(names))
    if count != len(names):
        errors.add(path, f"`nc` is {str(count)[:20]}, but `names` has {len(names)} classes", field="nc")
    folders = {
        part: [entry for item in _listed(content.get(key)) for entry in _images_of(archive, item)]
        for key, part in _KEYS.items()
    }
    return _checked(path, [str(name).strip() for name in names], errors), folders


def _listed(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _images_of(archive: Archive, entry: str) -> list[str]:
    """What an entry for a part stands for in the archive: a folder with `/` behind it, or the images of a list."""
    path = _within(entry)
    if not path.endswith(".txt"):
        return [f"{path}/"] if path else []
    if path not in archive:
        return []
    return [_within(line) for line in archive.read(path).decode("utf-8", "replace").splitlines() if line.strip()]


def _within(path: str) -> str:
    """A path without what leads out of the archive: data.yaml is written for another place."""
    parts = PurePosixPath(path.strip().replace("\\", "/")).parts
    return "/".join(part for part in parts if part not in ("..", ".", "/"))


def _part(path: str, folders: dict[str, list[str]]) -> str:
    """The part of an image by data.yaml, by the names of its folders otherwise."""
    for part in PARTS:
        if any(path == entry or (entry.endswith("/") and path.startswith(entry)) for entry in folders.get(part, ())):
            return part
    return part_of(PurePosixPath(path).parent.as_posix())


def _checked(path: str, names: list[str], errors: Problems) -> list[str]:
    """The names; reports those that are empty or double."""
    for row, name in enumerate(names, 1):
        if not name:
            errors.add(path, "a class needs a name", row=row, field="names")
        elif name in names[: row - 1]:
            errors.add(path, f"`{name[:80]}` is the name of another class", row=row, field="names")
    return names


def _label_paths(image: str) -> list[str]:
    """Where the labels of an image may be."""
    path = PurePosixPath(image).with_suffix(".txt")
    parts = list(path.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return ["/".join(parts), path.as_posix()]


def _boxes(content: bytes, path: str, names: list[str], errors: Problems) -> list[Box]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        errors.add(path, "the file is not UTF-8 text; save it as UTF-8")
        return []
    boxes = (_box(line.split(), path, row, names, errors) for row, line in enumerate(lines, 1) if line.strip())
    return [box for box in boxes if box is not None]


def _box(texts: list[str], path: str, row: int, names: list[str], errors: Problems) -> Box | None:
    """The box of a line."""
    values = [number(text) for text in texts]
    if len(texts) != 5 and (len(texts) < 7 or len(texts) % 2 == 0):
        message = f"{len(texts)} values; a line is `class centre_x centre_y width height`"
        errors.add(path, message, row=row, kind="number of values")
        return None
    for text, value in zip(texts, values, strict=True):
        if value is None:
            errors.add(path, f"`{text[:40]}` is not a finite number", row=row)
    index, *coordinates = values
    if index is None or None in coordinates:
        return None
    if index not in range(len(names)):
        known = f"there are classes 0 to {len(names) - 1}" if names else "there are no classes"
        errors.add(path, f"{known}, not `{texts[0][:40]}`", row=row, field="class", kind=f"{path} class")
        return None
    shares = [value for value in coordinates if value is not None]
    if max(map(abs, shares)) > _MOST_SHARE:
        message = "coordinates are shares of the image's sides, between 0 and 1, not pixels"
        errors.add(path, message, row=row, field="box")
        return None
    if len(shares) == 4:
        x, y, width, height = shares
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        corners = (min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2]))
    return Box(names[int(index)], corners, row=row, field="box")


def _yaml_files(archive: Archive) -> list[str]:
    """data.yaml, or any other YAML file, the one nearest the top first."""
    files = [name for name in archive.names if name.lower().endswith((".yaml", ".yml"))]
    return sorted(files, key=lambda name: (PurePosixPath(name).stem.lower() != "data", name.count("/"), name))


def _named(archive: Archive, names: tuple[str, ...]) -> list[str]:
    return sorted((n for n in archive.names if PurePosixPath(n).name in names), key=lambda name: name.count("/"))
