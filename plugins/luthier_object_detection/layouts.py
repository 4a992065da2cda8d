"""What the readers of all layouts have in common: what they return, how they name problems, how they find images."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from luthier import images
from luthier.archives import Archive
from luthier.task import DataProblem

MAX_ALIKE = 20
"""Problems of one kind that are listed one by one; further ones are counted."""
MAX_PROBLEMS = 300

_PARTS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation"}
_PARTS |= {"test": "test", "testing": "test"}
_WORDS = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Box:
    """An object as its file states it."""

    label: str
    corners: tuple[float, float, float, float]
    """Left, top, right, bottom; of finite numbers."""
    crowd: bool = False
    row: int = 0
    """Line or number of the object in its file, from 1."""
    field: str = ""
    """What the file calls it."""


@dataclass
class Annotated:
    """An image with its objects."""

    image: str
    """Path in the archive."""
    source: str
    """Path of the file that says what is in it; empty where there is none."""
    part: str = ""
    """`train`, `validation`, `test`, or empty where the data do not say."""
    size: tuple[int, int] | None = None
    """(width, height) as stated."""
    relative: bool = False
    """True where the boxes are shares of the image's sides."""
    boxes: list[Box] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """What a layout holds."""

    images: list[Annotated]
    classes: list[str]
    """Those that the data name, in their order; none where they do not."""


class Problems:
    """What is wrong with an archive, or odd in it."""

    def __init__(self, archive: str) -> None:
        self._archive = archive
        self._problems: list[DataProblem] = []
        self._alike: Counter[str] = Counter()
        self._last: dict[str, DataProblem] = {}
        self._unlisted = 0

    def __bool__(self) -> bool:
        return bool(self._problems)

    def add(self, path: str, message: str, *, row: int = 0, field: str = "", kind: str = "", count: int = 1) -> None:
        """Records one, with a file of the archive, a line or number in it and a field.

        Those of one kind, which is the message where none is given, are counted together from MAX_ALIKE on.
        """
        kind = kind or message
        self._alike[kind] += 1
        if self._alike[kind] > MAX_ALIKE and kind in self._last:
            self._last[kind].count += 1
        elif len(self._problems) < MAX_PROBLEMS:
            file = f"{self._archive}/{path}" if path else self._archive
            self._last[kind] = DataProblem(file=file, row=row, field=field, message=message, count=count)
            self._problems.append(self._last[kind])
        else:
            self._unlisted += 1

    def listed(self) -> list[DataProblem]:
        """All of them, in the order they were found."""
        if not self._unlisted:
            return self._problems
        more = DataProblem(
            file=self._archive, message=f"there are {self._unlisted} more problems like these", count=self._unlisted
        )
        return [*self._problems, more]


class ImageFinder:
    """The images of an archive by the names that annotations use, which rarely are whole paths."""

    def __init__(self, archive: Archive) -> None:
        self.paths = [name for name in archive.names if is_image(name)]
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            self._by_name[PurePosixPath(path).name].append(path)
            self._by_stem[PurePosixPath(path).stem].append(path)

    def named(self, name: str, source: str, part: str) -> list[str]:
        """The images that a name in the file `source` may mean: one, where the data are clear."""
        wanted = PurePosixPath(name.replace("\\", "/"))
        return self._closest(self._by_name.get(wanted.name, []), wanted, source, part)

    def with_stem(self, stem: str, source: str) -> list[str]:
        """The images whose name without its ending is this."""
        return self._closest(self._by_stem.get(stem, []), PurePosixPath(stem), source, "")

    def _closest(self, paths: list[str], wanted: PurePosixPath, source: str, part: str) -> list[str]:
        """Those with the most folders in common with the name; then of the part; then beside the source."""
        if len(paths) < 2:
            return paths
        folder = PurePosixPath(source).parent

        def closeness(path: str) -> tuple[int, bool, bool, bool]:
            found = PurePosixPath(path)
            return (
                _common_tail(found.parts, wanted.parts),
                bool(part) and part_of(found.parent.as_posix()) == part,
                found.parent == folder,
                found.parent.name.lower() in ("images", "jpegimages"),
            )

        best = max(map(closeness, paths))
        return [path for path in paths if closeness(path) == best]


def is_image(path: str) -> bool:
    """Whether a file is named as images are."""
    return PurePosixPath(path).suffix[1:].lower() in images.ENDINGS


def part_of(path: str) -> str:
    """The part that the last telling word of a path means, as in `instances_val2017.json`; empty where none does."""
    words = (_PARTS.get(word, "") for word in reversed(_WORDS.findall(path.lower())))
    return next((part for part in words if part), "")


def number(value: Any) -> float | None:
    """A finite number; None for anything else. JSON and YAML know infinities, and whole numbers without bound."""
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def some(names: Iterable[object], count: int = 5) -> str:
    """The first few, for a message."""
    listed = [str(name) for name in names]
    return ", ".join(f"`{name[:80]}`" for name in listed[:count]) + (", …" if len(listed) > count else "")


def _parsed(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _common_tail(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=False)) if a != b), min(len(one), len(other))
    )
