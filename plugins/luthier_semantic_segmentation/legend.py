"""What the pixels of masks mean: files in an archive that name values or colours.

- `classes.txt`: line i, counted from 0, names the value i.
- `classes.csv`, `_classes.csv`, `class_dict.csv`: a header, then rows. A column `name` (or `class`, `label`), and a
  column `value` (or `pixel value`, `index`, `id`), or `color` with #rrggbb, or three columns `r`, `g`, `b`. A row
  without a name says that its pixels are to be ignored.
- `labelmap.txt`, which CVAT writes: `name:r,g,b:parts:actions` in each line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np

from luthier.archives import Archive
from luthier.errors import InvalidData
from luthier.task import DataProblem

VOID = 255
"""The value that pixels of a colour get that is to be ignored."""

_UNKNOWN = -1
_NAME = ("name", "class", "label")
_VALUE = ("value", "pixel value", "index", "id")
_COLOUR = ("color", "colour")


@dataclass(frozen=True)
class Legend:
    """The names of values or of colours; without either, values are their own names."""

    source: str = ""
    """Path of the file that says it; empty: none does."""
    names: Mapping[int, str] = field(default_factory=dict)
    """The class of each value. Where there are colours, values count them in the order of the file."""
    ignored: frozenset[int] = frozenset()
    """Values that the file says are to be ignored."""
    colours: Mapping[int, int] = field(default_factory=dict)
    """The value of each colour, written 0xrrggbb."""

    def values(self, colours: np.ndarray) -> np.ndarray:
        """The values of uint8 [height, width, 3]: int16 [height, width], negative where the colour is not known."""
        values: np.ndarray = self._table[packed(colours)]
        return values

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.full(1 << 24, _UNKNOWN, dtype=np.int16)
        table[list(self.colours)] = list(self.colours.values())
        return table


def packed(colours: np.ndarray) -> np.ndarray:
    """Colours, uint8 [height, width, 3], as 0xrrggbb: int32 [height, width]."""
    wide = colours.astype(np.int32)
    numbers: np.ndarray = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return numbers


def parse_colour(text: str) -> int | None:
    """`#rrggbb` as 0xrrggbb; None where it is no colour."""
    return int(text[1:], 16) if re.fullmatch(r"#[0-9a-fA-F]{6}", text) else None


def find(archive: Archive, name: str) -> Legend:
    """Reads the file of an archive that says what pixels mean; `name` is what the user calls the archive.

    Several files, as in a folder for each part, have to say the same. Raises InvalidData.
    """
    readers = {"classes.txt": _lines, "labelmap.txt": _label_map} | dict.fromkeys(
        ("classes.csv", "_classes.csv", "class_dict.csv"), _table
    )
    found: list[Legend] = []
    problems: list[DataProblem] = []
    for path in archive.names:
        read = readers.get(PurePosixPath(path).name.lower())
        if read is None:
            continue
        try:
            found.append(read(path, archive.read(path).decode("utf-8-sig")))
        except UnicodeDecodeError:
            problems.append(DataProblem(file=f"{name}/{path}", message="the file is not UTF-8 text"))
        except ValueError as error:
            problems.append(DataProblem(file=f"{name}/{path}", message=str(error)))
    for other in found[1:]:
        if (other.names, other.colours, other.ignored) != (found[0].names, found[0].colours, found[0].ignored):
            message = f"it says other than {found[0].source} what the masks mean; leave one"
            problems.append(DataProblem(file=f"{name}/{other.source}", message=message))
    if problems:
        raise InvalidData(problems)
    return found[0] if found else Legend()


def _lines(path: str, text: str) -> Legend:
    names = {value: line.strip() for value, line in enumerate(text.splitlines()) if line.strip()}
    return Legend(path, _checked(names.items()))


def _label_map(path: str, text: str) -> Legend:
    rows: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(":")
            rows.append((_channels(rest.split(":")[0].split(",")), name.strip()))
    return _coloured(path, rows)


def _table(path: str, text: str) -> Legend:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    by_name = {column.strip().lower(): column for column in reader.fieldnames or ()}
    name, value, colour = (
        next((by_name[column] for column in columns if column in by_name), None) for columns in (_NAME, _VALUE, _COLOUR)
    )
    channels = [by_name[column] for column in "rgb" if column in by_name]
    if name is None or not (value or colour or len(channels) == 3):
        raise ValueError(
            "the header needs the column `name`, and `value`, or `color` with #rrggbb, or `r`, `g` and `b`; "
            f"it has {', '.join(f'`{column}`' for column in by_name)}"
        )
    rows = [{column: (cell or "").strip() for column, cell in row.items() if column} for row in reader]
    if value:
        return _valued(path, [(row[value], row[name]) for row in rows])
    if colour:
        return _coloured(path, [(_colour(row[colour]), row[name]) for row in rows])
    return _coloured(path, [(_channels([row[channel] for channel in channels]), row[name]) for row in rows])


def _valued(path: str, rows: Iterable[tuple[str, str]]) -> Legend:
    numbered: list[tuple[int, str]] = []
    for text, name in rows:
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"`{text[:40]}` is no value of a pixel, which is a whole number from 0 to 255")
        numbered.append((int(text), name))
    ignored = frozenset(value for value, name in numbered if not name)
    return Legend(path, _checked((value, name) for value, name in numbered if name), ignored)


def _coloured(path: str, rows: Iterable[tuple[int, str]]) -> Legend:
    named = [(colour, name) for colour, name in rows if name]
    colours = {colour: value for value, (colour, _) in enumerate(named)}
    if len(colours) < len(named):
        raise ValueError("a colour stands in it twice")
    if VOID in colours.values():
        raise ValueError(f"it has {len(named)} colours; at most {VOID} are taken")
    void = {colour: VOID for colour, name in rows if not name}
    names = _checked(enumerate(name for _, name in named))
    return Legend(path, names, frozenset([VOID]), colours | void)


def _checked(pairs: Iterable[tuple[int, str]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for value, name in pairs:
        if not 0 <= value <= 255:
            raise ValueError(f"{value} is no value of a pixel, which is a whole number from 0 to 255")
        if names.setdefault(value, name) != name:
            raise ValueError(f"the value {value} is called `{names[value]}` and `{name}`")
    if not names:
        raise ValueError("it names no class")
    return names


def _colour(text: str) -> int:
    colour = parse_colour(text)
    if colour is None:
        raise ValueError(f"`{text[:40]}` is no colour; write it as #rrggbb")
    return colour


def _channels(texts: list[str]) -> int:
    channels = [int(text) if text.strip().isdigit() else -1 for text in texts]
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise ValueError(f"`{','.join(texts)[:40]}` is no colour; write three numbers from 0 to 255")
    red, green, blue = channels
    return red << 16 | green << 8 | blue
