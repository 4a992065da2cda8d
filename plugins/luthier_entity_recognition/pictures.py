"""Draws a text with its entities as SVG, which every browser shows, without a font of its own."""

from __future__ import annotations

import colorsys
import math
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from luthier.task import Picture

LINE = 88
"""Columns of a line; wide characters, as of Chinese, take two."""
COLUMN = 9.0
"""Width of a column in pixels."""
HEIGHT = 30
"""Of a line, in pixels."""
MARGIN = 16
HUES = 12
"""Colours of labels."""


@dataclass(frozen=True)
class _Run:
    """Some text of one line, within one entity or none."""

    text: str
    label: str = ""
    caption: bool = False
    """Whether the label is written behind it: it is the entity's last run."""

    @property
    def is_space(self) -> bool:
        """Whether it can be left out at either end of a line."""
        return self.text == " " and not self.caption

    @property
    def columns(self) -> int:
        """What it takes of a line."""
        # A label is written in smaller letters, and stands a column behind.
        return _width(self.text) + (math.ceil(0.75 * _width(self.label)) + 1 if self.caption else 0)


def draw(text: str, entities: Sequence[Any]) -> Picture:
    """The text, wrapped, each entity on a ground of its label's colour, which is the same in every picture."""
    colours = _colours(sorted({entity.label for entity in entities}))
    lines = list(_lines(text, entities))
    rightward = not _is_leftward(text)
    width, height = LINE * COLUMN + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    drawn: list[str] = []
    for number, line in enumerate(lines):
        column = 0
        for run in line:
            left = column if rightward else LINE - column - run.columns
            drawn.extend(_drawn(run, MARGIN + left * COLUMN, MARGIN + number * HEIGHT, colours, rightward))
            column += run.columns
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="monospace" font-size="15" fill="#1b1b1b">\n'
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )
    return Picture(svg.encode(), "image/svg+xml")


def _lines(text: str, entities: Iterable[Any]) -> Iterator[list[_Run]]:
    """The text by lines of at most LINE columns, where no single piece is wider."""
    line: list[_Run] = []
    used = 0
    for piece in _pieces(text, entities):
        if piece is None or (line and used + piece.columns > LINE):
            yield line[:-1] if line and line[-1].is_space else line
            line, used = [], 0
        if piece is not None and (used or not piece.is_space):
            line.append(piece)
            used += piece.columns
    yield line


def _pieces(text: str, entities: Iterable[Any]) -> Iterator[_Run | None]:
    """The text in pieces that no line end comes into; None ends a line."""
    at = 0
    for entity in entities:
        yield from _broken(text[at : entity.start])
        *head, last = [piece or _Run(" ") for piece in _broken(text[entity.start : entity.end])]
        yield from (_Run(piece.text, entity.label) for piece in head)
        yield _Run(last.text, entity.label, caption=True)
        at = entity.end
    yield from _broken(text[at:])


def _broken(text: str) -> Iterator[_Run | None]:
    """Words, spaces and line ends; words that a line has no room for are cut."""
    for number, line in enumerate(text.split("\n")):
        if number:
            yield None
        for index, word in enumerate(line.split(" ")):
            if index:
                yield _Run(" ")
            for start in range(0, len(word), LINE // 4):
                yield _Run(word[start : start + LINE // 4])


def _drawn(run: _Run, x: float, y: float, colours: dict[str, str], rightward: bool) -> Iterator[str]:
    if run.label:
        ground = f'width="{run.columns * COLUMN:g}" height="{HEIGHT - 6}" fill="{colours[run.label]}"'
        yield f'<rect x="{x:g}" y="{y:g}" {ground}/>'
    written = _width(run.text) * COLUMN
    behind = run.columns * COLUMN - written
    if run.text.strip():
        # Centred, and stretched to its columns, it lies where it should in any font and direction of writing.
        centre = x + written / 2 + (0 if rightward else behind)
        length = f'textLength="{written:g}" lengthAdjust="spacingAndGlyphs"'
        yield f'<text x="{centre:g}" y="{y + 17:g}" text-anchor="middle" {length}>{_escaped(run.text)}</text>'
    if run.caption:
        centre = x + (written if rightward else 0) + behind / 2
        length = f'textLength="{behind - COLUMN:g}" lengthAdjust="spacingAndGlyphs"'
        style = 'font-size="11" font-weight="bold" fill="#555555"'
        yield f'<text x="{centre:g}" y="{y + 16:g}" text-anchor="middle" {style} {length}>{_escaped(run.label)}</text>'


def _colours(labels: Iterable[str]) -> dict[str, str]:
    """A light colour for each label, by a hash of its name; the next one where another label has it."""
    taken: dict[int, str] = {}
    for label in labels:
        hue = zlib.crc32(label.encode()) % HUES
        while hue in taken and len(taken) < HUES:
            hue = (hue + 1) % HUES
        taken.setdefault(hue, label)
    hues = {label: hue for hue, label in taken.items()}
    return {label: _colour(hues.get(label, zlib.crc32(label.encode()) % HUES)) for label in labels}


def _colour(hue: int) -> str:
    red, green, blue = (round(255 * value) for value in colorsys.hls_to_rgb(hue / HUES, 0.83, 0.75))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _escaped(text: str) -> str:
    """Text as XML can hold it: it has no way to write most control characters."""
    allowed = "".join(c if c.isprintable() or unicodedata.category(c) == "Cf" else "\ufffd" for c in text)
    return escape(allowed)


def _width(text: str) -> int:
    """Columns that a text takes, 1 at least."""
    return max(1, sum(_columns(character) for character in text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _is_leftward(text: str) -> bool:
    """Whether the first letter with a direction is of a script that is written to the left."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((direction for direction in directions if direction in ("L", "R", "AL")), "L") != "L"
