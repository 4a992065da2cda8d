"""How tags spell entities: IOB1, IOB2 (BIO) and IOBES, whose letters may also be those of BILOU and BMES.

All of them are read in one way, that of the CoNLL shared tasks: B and S begin an entity, and so does I or E where none
of its type is open. What differs is which sequences are slips.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

OUTSIDE = "O"
PREFIXES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
"""The letters that are known, each with the one of IOBES that means the same."""

_TAG = re.compile(rf"([{''.join(PREFIXES)}])-(.+)")

Tag = tuple[str, str]
"""Prefix of IOBES and type; both empty outside of entities."""


def parse(text: str) -> Tag | None:
    """A tag; None where it is none."""
    if text == OUTSIDE:
        return "", ""
    found = _TAG.fullmatch(text)
    return (PREFIXES[found[1]], found[2]) if found else None


@dataclass(frozen=True)
class Slip:
    """A tag that its scheme does not allow where it is."""

    at: int
    """Which tag of the sentence."""
    message: str


@dataclass
class Spelling:
    """Entities of a sentence, as (first, behind, type) in tags, and what each scheme would call a slip in it."""

    entities: list[tuple[int, int, str]] = field(default_factory=list)
    stray: list[Slip] = field(default_factory=list)
    """I or E that no entity of the type is open for: slips unless the file is in IOB1."""
    unclosed: list[Slip] = field(default_factory=list)
    """Entities without E or S at their end: slips in IOBES."""
    early: int = 0
    """B where no entity of the type ends: there is none in IOB1."""


def spell(tags: Iterable[Tag]) -> Spelling:
    """Reads the tags of one sentence."""
    result = Spelling()
    opened, before = -1, ""
    for at, (prefix, label) in enumerate([*tags, ("", "")]):
        goes_on = opened >= 0 and prefix in ("I", "E") and label == before
        if opened >= 0 and not goes_on:
            result.entities.append((opened, at, before))
            result.unclosed.append(Slip(at - 1, f"the entity is not closed: end it with E-{before} or S-{before}"))
            opened = -1
        if label and not goes_on:
            if prefix in ("I", "E"):
                message = f"{prefix}-{label} has no {label} before it to go on from; begin the entity with B-{label}"
                result.stray.append(Slip(at, message))
            elif prefix == "B" and not (result.entities and result.entities[-1][1:] == (at, label)):
                result.early += 1
            opened, before = at, label
        if prefix in ("E", "S"):
            result.entities.append((opened, at + 1, label))
            opened = -1
    return result


def slips(sentences: Sequence[Spelling], prefixes: set[str]) -> list[list[Slip]]:
    """The slips of each sentence of a file whose tags have these prefixes, by the scheme that they show.

    E or S show IOBES. Else it is IOB1 where that has no slip, and IOB2 if not.
    """
    if prefixes & {"E", "S"}:
        return [sorted([*one.stray, *one.unclosed], key=lambda slip: slip.at) for one in sentences]
    if not any(one.early for one in sentences):
        return [[] for _ in sentences]
    return [one.stray for one in sentences]
