"""The layout `masks`: an image and a mask file of the same name, for instance `images/a.jpg` and `masks/a.png`.

Masks lie in a folder whose name says so, or beside the images with an ending such as `_mask`. Folders called train, val
or test, or the lists of Pascal VOC in ImageSets/Segmentation, divide the examples. `legend` says what pixels mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from luthier import images
from luthier.archives import Archive
from luthier.task import DataFile, DataProblem, InvalidArgument
from luthier_semantic_segmentation import legend as legends
from luthier_semantic_segmentation.legend import Legend
from luthier_semantic_segmentation.rows import PART_WORDS, Problems, Row, check_image, warn, words

MASK_WORDS = {
    *("mask", "masks", "annotation", "annotations", "annot", "label", "labels", "trimap", "trimaps", "seg", "segs"),
    *("segmentation", "segmentations", "segmentationclass", "gt", "truth", "groundtruth", "ground", "semantic"),
    *("trainannot", "valannot", "testannot"),
}
"""Words that a folder of masks is called by, with those of IMAGE_WORDS and of the parts."""
IMAGE_WORDS = {
    "image",
    "images",
    "img",
    "imgs",
    "jpegimages",
    "jpg",
    "png",
    "photo",
    "photos",
    "picture",
    "pictures",
    "data",
}
MASK_ENDINGS = ("_mask", "-mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt", "_l")
"""Of masks' names, without which they equal the images'."""
NOT_MASKS = {"segmentationobject"}
"""Folders whose masks tell things apart, not classes."""
LISTS = "ImageSets/Segmentation/"
SHOWN = 5


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    image: str
    mask: str
    part: str


@dataclass(frozen=True)
class Content:
    """What is in a pair that has been read."""

    pair: Pair
    image: bytes
    mask: bytes
    pixels: Mapping[int, int]
    """How many pixels of the mask have each value."""
    warning: str
    """What is odd about the image's name."""


@dataclass(frozen=True)
class Pairing:
    """What goes together in an archive, and the paths of what does not."""

    pairs: list[Pair]
    images_alone: list[str]
    masks_alone: list[str]
    twice: list[str]
    """Images that share their name and part with another."""


class _Wrong(ValueError):
    """A pair with a problem: the path, the field, what is wrong."""


def is_one(archive: Archive) -> bool:
    """Whether there is any mask to go with an image."""
    return bool(_paired(archive).pairs)


def read(file: DataFile, archive: Archive) -> dict[str, list[Row]]:
    """Reads all examples by part; raises InvalidData with every problem of the archive."""
    problems = Problems(file)
    legend = legends.find(archive, file.name)
    legend = _with_ignored_colour(legend, file.options["ignore"])
    found = _listed(archive, _paired(archive))
    pairs = found.pairs
    for path in found.images_alone:
        problems.add(path, "image", "there is no mask of its name; add one, or take the image out")
    for path in found.masks_alone:
        problems.add(path, "mask", "there is no image of its name, or it has a mask already; take this one out")
    for path in found.twice:
        problems.add(path, "image", "there is another image of its name; give them different names")
    if not pairs and not problems.found:
        problems.add("", "", "there is no image with a mask; pack for instance images/a.jpg and masks/a.png")

    contents = []
    for content in _contents(archive, pairs, legend):
        if isinstance(content, Content):
            contents.append(content)
        else:
            for wrong in content:
                problems.leave_out(*wrong.args)
    ignored = _ignored(file.options["ignore"], legend, contents)
    _check_values(contents, legend, ignored, problems)
    problems.check()

    warn(file, {content.pair.image: content.warning for content in contents if content.warning})
    if not legend.names:
        values = sorted({value for content in contents for value in content.pixels} - ignored)
        message = (
            f"no file names the masks' values, so they are called {_some(map(str, values))}; "
            "add classes.txt, whose first line names the value 0, the second 1, or classes.csv with `value` and `name`"
        )
        file.warnings.append(DataProblem(file=file.name, field="mask", message=message))
    rows: dict[str, list[Row]] = {}
    for content in contents:
        values = sorted(content.pixels.keys() - ignored)
        labels = [legend.names.get(value, str(value)) for value in values]
        row = Row(content.image, content.mask, values, labels, content.pair.image)
        rows.setdefault(content.pair.part, []).append(row)
    return rows


def _paired(archive: Archive) -> Pairing:
    """Images with their masks, by names alone."""
    found: dict[tuple[str, str], str] = {}
    masks: list[tuple[str, str, str]] = []
    twice: list[str] = []
    for path in archive.names:
        parts = PurePosixPath(path).parts
        if PurePosixPath(path).suffix[1:].lower() not in images.ENDINGS or NOT_MASKS & {p.lower() for p in parts}:
            continue
        part, is_mask, key = _place(path)
        if is_mask:
            masks.append((path, part, key))
        elif (part, key) in found:
            twice.append(path)
        else:
            found[part, key] = path
    for part, key in list(found):
        if (stem := _without_ending(key)) and (part, stem) in found:
            masks.append((found.pop((part, key)), part, key))
    pairs: dict[str, Pair] = {}
    alone: list[str] = []
    for path, part, key in masks:
        image = _image_of(found, part, key)
        if image is None or found[image] in pairs:
            alone.append(path)
        else:
            pairs[found[image]] = Pair(found[image], path, image[0] or part)
    return Pairing([*pairs.values()], [path for path in found.values() if path not in pairs], alone, twice)


def _place(path: str) -> tuple[str, bool, str]:
    """The part that a path says, whether its folders are of masks, and what is left of it to know its partner by."""
    part, is_mask, rest = "", False, []
    *folders, name = PurePosixPath(path).with_suffix("").parts
    for folder in folders:
        said = words(folder)
        if said and all(word in MASK_WORDS or word in IMAGE_WORDS or word in PART_WORDS for word in said):
            part = next((PART_WORDS[word] for word in said if word in PART_WORDS), part)
            part = next((PART_WORDS[word[:-5]] for word in said if word.endswith("annot") and word != "annot"), part)
            is_mask = is_mask or bool(MASK_WORDS.intersection(said))
        else:
            rest.append(folder)
    return part, is_mask, "/".join([*rest, name])


def _image_of(found: Mapping[tuple[str, str], str], part: str, key: str) -> tuple[str, str] | None:
    """The image of a mask: of its name, or of it without the ending; of its part, or where only one side has parts."""
    parts = [part, ""] if part else ["", "train", "validation", "test"]
    for name in (key, _without_ending(key)):
        for candidate in parts:
            if name and (candidate, name) in found:
                return candidate, name
    return None


def _without_ending(key: str) -> str:
    """A name without the ending of masks; empty where it has none."""
    ending = next((ending for ending in MASK_ENDINGS if key.lower().endswith(ending)), "")
    return key[: -len(ending)] if ending else ""


def _listed(archive: Archive, found: Pairing) -> Pairing:
    """The pairs in the parts that lists of Pascal VOC give them, and what is listed and lacks a mask.

    What no list names is left out, as in Pascal VOC, where most images have no mask. `trainval` is `train` where that
    is not given. Without lists nothing changes.
    """
    lists = {
        PurePosixPath(path).stem.lower(): archive.read(path).decode("utf-8", "replace").split()
        for path in archive.names
        if path.startswith(LISTS) and path.endswith(".txt")
    }
    named = {PART_WORDS[name]: stems for name, stems in lists.items() if name in PART_WORDS}
    if "train" not in named and "trainval" in lists:
        named["train"] = [stem for stem in lists["trainval"] if stem not in named.get("validation", ())]
    if not named:
        return found
    part = {stem: part for part, stems in named.items() for stem in stems}

    def is_listed(path: str) -> bool:
        return PurePosixPath(path).stem in part

    return Pairing(
        [replace(pair, part=part[PurePosixPath(pair.image).stem]) for pair in found.pairs if is_listed(pair.image)],
        [path for path in found.images_alone if is_listed(path)],
        [path for path in found.masks_alone if is_listed(path)],
        found.twice,
    )


def _contents(archive: Archive, pairs: Iterable[Pair], legend: Legend) -> Iterator[Content | list[_Wrong]]:
    """Reads and decodes pairs on all cores, in order; of each its content or what is wrong with it."""

    def read(pair: Pair) -> tuple[Pair, bytes, bytes]:
        return pair, archive.read(pair.image), archive.read(pair.mask)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(lambda loaded: _content(loaded[0], loaded[1], loaded[2], legend), map(read, pairs))


def _content(pair: Pair, image: bytes, mask: bytes, legend: Legend) -> Content | list[_Wrong]:
    wrong: list[_Wrong] = []
    size, warning, values = None, "", None
    try:
        size, warning = check_image(image, pair.image)
    except images.ImageError as error:
        wrong.append(_Wrong(pair.image, "image", str(error)))
    try:
        values, stored = _values(mask, legend, pair.mask)
    except images.ImageError as error:
        wrong.append(_Wrong(pair.mask, "mask", str(error)))
    except _Wrong as error:
        wrong.append(error)
    if size and values is not None and values.shape != size:
        message = (
            f"the mask has {values.shape[1]}x{values.shape[0]} pixels, its image {size[1]}x{size[0]} as it is shown; "
            "they have to be of one size"
        )
        wrong.append(_Wrong(pair.mask, "mask", message))
    if wrong or values is None:
        return wrong
    counts = np.bincount(values.ravel(), minlength=256)
    pixels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return Content(pair, image, stored, pixels, warning)


def _values(mask: bytes, legend: Legend, path: str) -> tuple[np.ndarray, bytes]:
    """The values of a mask, uint8 [height, width], and a PNG of them; raises ImageError, or _Wrong with what to do."""
    header = images.inspect(mask)
    if header.format == "JPEG":
        raise _Wrong(path, "mask", "JPEG blurs the values of a mask; save it as PNG")
    if legend.colours:
        values = _of_colours(images.decode(mask), legend, path)
        return values, images.encode_png(values)
    values = images.decode_values(mask)
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            message = (
                "the mask stores colours; say which classes they are: add classes.csv with the columns `color` "
                "(#rrggbb) and `name`, or CVAT's labelmap.txt"
            )
            raise _Wrong(path, "mask", message)
        values = values[..., 0]
    if values.max() > 255:
        message = f"the mask stores values up to {values.max()}; at most 255 are taken, so number the classes from 0"
        raise _Wrong(path, "mask", message)
    values = np.ascontiguousarray(values, dtype=np.uint8)
    kept = header.format == "PNG" and header.mode in ("L", "P")
    return values, mask if kept else images.encode_png(values)


def _of_colours(colours: np.ndarray, legend: Legend, path: str) -> np.ndarray:
    values = legend.values(colours)
    if (unknown := values < 0).any():
        found, counts = np.unique(legends.packed(colours)[unknown], return_counts=True)
        listed = [f"#{colour:06x} ({count} pixels)" for colour, count in zip(found, counts, strict=True)]
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        message = (
            f"{legend.source} does not name the colours {', '.join(listed[:SHOWN])}{more}; "
            "add them, or one to be ignored by --option ignore=#rrggbb"
        )
        raise _Wrong(path, "mask", message)
    return values.astype(np.uint8)


def _with_ignored_colour(legend: Legend, option: str) -> Legend:
    """The legend, of which one colour more is to be ignored where the option says so; checks the option."""
    colour = legends.parse_colour(option)
    if colour is None:
        if option in ("auto", "none") or (option.isascii() and option.isdigit() and int(option) <= 255):
            return legend
        raise InvalidArgument(
            {"options.ignore": f"`{option[:40]}` is none of auto, none, a value from 0 to 255, or a colour #rrggbb"}
        )
    if not legend.colours:
        raise InvalidArgument(
            {"options.ignore": "a colour is ignored where a file of the archive names the others; add classes.csv"}
        )
    return Legend(
        legend.source, legend.names, legend.ignored | {legends.VOID}, {**legend.colours, colour: legends.VOID}
    )


def _ignored(option: str, legend: Legend, contents: Sequence[Content]) -> set[int]:
    """Values that stand for no class."""
    ignored = set(legend.ignored)
    if option.isdigit():
        return ignored | {int(option)}
    if option != "auto" or legends.VOID in legend.names:
        return ignored
    black_and_white = {value for content in contents for value in content.pixels} <= {0, 255}
    return ignored if black_and_white else ignored | {legends.VOID}


def _check_values(contents: Sequence[Content], legend: Legend, ignored: set[int], problems: Problems) -> None:
    """Reports values that a file of names lacks."""
    for content in contents if legend.names else ():
        if unknown := sorted(content.pixels.keys() - legend.names.keys() - ignored):
            listed = _some(f"{value} ({content.pixels[value]} pixels)" for value in unknown)
            message = f"{legend.source} does not name the values {listed}; add them, or --option ignore={unknown[0]}"
            problems.add(content.pair.mask, "mask", message)


def _some(texts: Iterable[str]) -> str:
    listed = list(texts)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
