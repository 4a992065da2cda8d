"""Words: what tags are given to, and so where entities may begin and end.

A word is a run of letters, digits and underscores with the marks that belong to them. In scripts that are written
without spaces each character is a word, and so is each other character that is not white space. Where words are joined,
a word goes on over a single hyphen, apostrophe, full stop, `&` or `@` within and takes along a `@` or `#` before it; a
web address is one word, and so is one character of punctuation repeated: a tag for each of their pieces would be many
lessons that there is no name in them. Offsets count Unicode code points.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import groupby

import numpy as np

JOINERS = "-'\u2019.&@"
MAX_CUT = 0.01
"""Share of the entities that joined words may cut into before words are no longer joined."""

_ADDRESS = "(?:https?|ftp)://[!-~]*[0-9A-Za-z/]"
_REPEATED = r"([^\w\s])\1++"
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai and Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f\u1780-\u17ff"  # Burmese and Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Hiragana and Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_MARKS = range(0x300, 0x1F400)
"""Where characters are that combine with the one before."""
_JOINING = "\u200c\u200d\u2060"
"""Zero-width characters that hold together. Zero-width spaces part words, as other spaces do, and are words."""
_SELECTORS = "\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f\U000e0100-\U000e01ef"
"""Skin tones, the letters of flags, and the supplement of the variation selectors."""

Spans = tuple[np.ndarray, np.ndarray]
"""Starts and ends, both int64 [spans], sorted; no two overlap."""


def split(text: str, *, joined: bool) -> Spans:
    """The words of a text."""
    found = [match.span() for match in _pattern(joined).finditer(text)]
    starts, ends = np.array(found, dtype=np.int64).reshape(-1, 2).T
    return starts, ends


def covered(spans: Spans, start: int, end: int) -> tuple[int, int]:
    """The first of the spans that overlap with [start, end), and the first one behind them: equal where none does."""
    starts, ends = spans
    return int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(starts, end, side="left"))


def snapped(spans: Spans, start: int, end: int) -> tuple[int, int]:
    """[start, end) moved to the borders of the spans that it overlaps with; as it is where there is none."""
    first, behind = covered(spans, start, end)
    return (int(spans[0][first]), int(spans[1][behind - 1])) if first < behind else (start, end)


def num_cut(texts: Sequence[str], entities: Sequence[Sequence[tuple[int, int]]], *, joined: bool) -> int:
    """How many entities, given as (start, end), do not begin and end with a word."""
    count = 0
    for text, spans in zip(texts, entities, strict=True):
        if spans:
            words = split(text, joined=joined)
            count += sum(snapped(words, start, end) != (start, end) for start, end in spans)
    return count


@cache
def _pattern(joined: bool) -> re.Pattern[str]:
    marks = f"[{_marks()}]*+"
    run = f"(?:[^\\W{_UNSPACED}]++{marks})++"
    if joined:
        run = f"{_ADDRESS}|[@#]?{run}(?:[{re.escape(JOINERS)}]{run})*+|{_REPEATED}{marks}"
    return re.compile(f"{run}|\\S{marks}")


@cache
def _marks() -> str:
    """The characters that belong to the one before, as ranges of a regular expression: accents, vowel signs, joiners.

    Python's own `\\w` leaves them out, and would cut through most words of Hindi.
    """
    marks = "".join(filter(_is_mark, map(chr, _MARKS)))
    runs = [[code for _, code in run] for _, run in groupby(enumerate(map(ord, marks)), key=lambda at: at[1] - at[0])]
    return _SELECTORS + "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Mc", "Me") or character in _JOINING
