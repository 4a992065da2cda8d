"""What the readers of both layouts have in common: examples that are collected, problems that are listed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from luthier import images
from luthier.errors import InvalidData
from luthier.task import DataFile, DataProblem

SCHEMA = pa.schema(
    [
        ("image", pa.large_binary()),
        ("mask", pa.large_binary()),
        ("values", pa.list_(pa.int64())),
        ("labels", pa.list_(pa.string())),
        ("name", pa.string()),
    ]
)
"""Columns of the example message."""
MAX_PROBLEMS = 1000
"""Problems listed for an archive; the last one tells how many more there were."""

PART_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "valset"), "validation"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
"""What folders and files of the parts are called."""


@dataclass(frozen=True)
class Row:
    """One example."""

    image: bytes
    mask: bytes
    """A PNG with a byte a pixel."""
    values: list[int]
    """Values that occur in the mask and stand for classes."""
    labels: list[str]
    """Their classes."""
    name: str


@dataclass
class Problems:
    """What is wrong with an archive."""

    file: DataFile
    found: list[DataProblem] = field(default_factory=list)

    def add(self, path: str, field: str, message: str) -> None:
        """Records a problem with a file of the archive, or with the archive where the path is empty."""
        name = f"{self.file.name}/{path}" if path else self.file.name
        self.found.append(DataProblem(file=name, field=field, message=message))

    def leave_out(self, path: str, field: str, message: str) -> None:
        """Records why a pair of image and mask cannot be used: in a lenient file it is left out with a warning."""
        if self.file.lenient:
            self.file.warnings.append(DataProblem(file=f"{self.file.name}/{path}", field=field, message=message))
        else:
            self.add(path, field, message)

    def check(self) -> None:
        """Raises InvalidData where there are any."""
        more = len(self.found) - MAX_PROBLEMS
        if more > 0:
            last = DataProblem(file=self.file.name, message=f"there are {more} more problems", count=more)
            raise InvalidData([*self.found[:MAX_PROBLEMS], last])
        if self.found:
            raise InvalidData(self.found)


def tables(rows: Mapping[str, list[Row]]) -> dict[str, pa.Table]:
    """Tables by part, of which the empty one is still to be split."""
    return {
        part: pa.table({column: [getattr(row, column) for row in listed] for column in SCHEMA.names}, SCHEMA)
        for part, listed in rows.items()
        if listed
    }


def check_image(data: bytes, path: str) -> tuple[tuple[int, int], str]:
    """Decodes an image in full; returns its (height, width) and what is odd about its name. Raises ImageError."""
    header = images.inspect(data)
    images.decode(data)
    return (header.height, header.width), images.misnamed(path, header)


def warn(file: DataFile, warnings: Mapping[str, str]) -> None:
    """Adds warnings by path, those that say the same as one that names the first path."""
    counts = Counter(warnings.values())
    first: dict[str, str] = {}
    for path, message in warnings.items():
        first.setdefault(message, path)
    for message, count in counts.items():
        file.warnings.append(DataProblem(file=f"{file.name}/{first[message]}", message=message, count=count))


def words(name: str) -> list[str]:
    """The words of a file's or folder's name, in small letters: `train_masks-2017` gives `train` and `masks`."""
    return re.findall(r"[a-z]+", name.lower())


def part_of(path: str) -> str:
    """The part that the nearest of a path's folders and file says it belongs to; empty where none does."""
    for component in reversed(path.removesuffix(".json").split("/")):
        for word in words(component):
            if word in PART_WORDS:
                return PART_WORDS[word]
    return ""
