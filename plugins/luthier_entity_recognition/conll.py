"""Reads CoNLL columns: a token and its tag in each line, blank lines between sentences.

Columns are parted by tabs, or by any white space where most lines have no tab. The tags are in the last column that
holds any; the tokens in the first, or in the second where the first counts them. `DataFile.columns` may say otherwise,
by numbers from 0. Lines that begin with `-DOCSTART-`, and comments as in CoNLL-U, belong to no sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luthier.errors import InvalidData
from luthier.tabular import Problems
from luthier.task import DataFile, DataProblem
from luthier_entity_recognition import schemes
from luthier_entity_recognition.examples import Example, table_of

if TYPE_CHECKING:
    import pyarrow as pa

MAX_SLIPS = 0.01
"""Slips for each entity that are read as the CoNLL shared tasks would, with a warning: annotators make as many. More
are taken for another scheme or a column that is no tag, and refused."""
DOCUMENT = "-DOCSTART-"

_COUNT = re.compile(r"\d+([-.]\d+)?")
"""Number of a token in its sentence; those of CoNLL-U with a second part are of no token."""


@dataclass
class Sentence:
    """Some lines without a blank one in between."""

    rows: list[int] = field(default_factory=list)
    cells: list[list[str]] = field(default_factory=list)

    def add(self, row: int, cells: list[str]) -> None:
        """Adds a line by its number."""
        self.rows.append(row)
        self.cells.append(cells)


def read(file: DataFile) -> pa.Table:
    """Reads a file into texts, the tokens of a sentence joined by single spaces, and entities.

    Raises InvalidData with every problem, its row the number of the line. A few slips are warnings of `file`.
    """
    problems = Problems(file.name)
    sentences, width = _sentences(_lines(file, problems))
    if not sentences and not problems:
        problems.add(0, "", "the file is empty")
    elif sentences and width < 2:
        problems.add(0, "", "its lines have 1 column; a token and its tag are needed, parted by a tab or a space")
    else:
        sentences = list(_of_width(sentences, width, problems))
    if not problems:
        columns = _columns(file, sentences, width, problems)
    if problems:
        raise InvalidData(problems.listed())
    tags = [_tags(sentence, columns["entities"], problems) for sentence in sentences]
    spellings = [schemes.spell(one) for one in tags]
    prefixes = {prefix for one in tags for prefix, _ in one}
    _report_slips(file, sentences, spellings, prefixes, problems)
    examples = [
        _example(_tokens(sentence, columns["text"], problems), spelling)
        for sentence, spelling in zip(sentences, spellings, strict=True)
    ]
    if problems:
        raise InvalidData(problems.listed())
    return table_of(examples)


def _lines(file: DataFile, problems: Problems) -> list[tuple[int, str]]:
    """Number and text of each line, which is empty for one of white space; those that are not UTF-8 are reported."""
    lines = []
    with file.path.open("rb") as stream:
        # Only line feeds end lines: a token may be any other character that Python would split at.
        for row, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8-sig" if row == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                problems.add(row, "", "the line is not UTF-8 text; save the file as UTF-8")
                continue
            lines.append((row, text if text.strip() else ""))
    return lines


def _sentences(lines: Sequence[tuple[int, str]]) -> tuple[list[Sentence], int]:
    """The sentences, and how many columns most of their lines have."""
    filled = [text for _, text in lines if text]
    tabbed = 2 * sum("\t" in text for text in filled) > len(filled)
    parted = [(row, _cells(text, tabbed)) for row, text in lines]
    widths = Counter(len(cells) for _, cells in parted if cells and not cells[0].startswith("#"))
    width = widths.most_common(1)[0][0] if widths else 0
    sentences = [Sentence()]
    for row, cells in parted:
        if not cells or cells[0] == DOCUMENT:
            sentences.append(Sentence())
        elif not (cells[0].startswith("#") and not sentences[-1].rows and _is_comment(cells, width)):
            sentences[-1].add(row, cells)
    return [sentence for sentence in sentences if sentence.rows], width


def _cells(text: str, tabbed: bool) -> list[str]:
    if not text:
        return []
    # Other white space than ASCII's may be a token.
    return [cell.strip(" ") for cell in text.split("\t")] if tabbed else re.split(r"[ \t]+", text.strip(" \t"))


def _is_comment(cells: Sequence[str], width: int) -> bool:
    """Whether a line before a sentence that begins with `#` is none of its tokens: those have a tag as others do."""
    return len(cells) != width or not any(map(schemes.parse, cells[1:]))


def _of_width(sentences: Sequence[Sentence], width: int, problems: Problems) -> Iterator[Sentence]:
    """The sentences without the lines of another width, which are reported."""
    for sentence in sentences:
        kept = Sentence()
        for row, cells in zip(sentence.rows, sentence.cells, strict=True):
            if len(cells) == width:
                kept.add(row, cells)
            else:
                plural = "s" if len(cells) != 1 else ""
                problems.add(row, "", f"the line has {len(cells)} column{plural} where most have {width}")
        yield kept


def _columns(file: DataFile, sentences: list[Sentence], width: int, problems: Problems) -> Mapping[str, int]:
    """Where tokens and tags are; takes the lines without a token out of a file whose first column counts."""
    counted = width > 2 and all(
        sentence.cells[0][0].startswith("1") and all(_COUNT.fullmatch(cells[0]) for cells in sentence.cells)
        for sentence in sentences
    )
    if counted:
        for sentence in sentences:
            kept = [
                (row, cells) for row, cells in zip(sentence.rows, sentence.cells, strict=True) if cells[0].isdecimal()
            ]
            sentence.rows, sentence.cells = [row for row, _ in kept], [cells for _, cells in kept]
    columns = {"text": int(counted), "entities": _tag_column(sentences, width)}
    for name, number in file.columns.items():
        if number.isdecimal() and int(number) < width:
            columns[name] = int(number)
        else:
            problems.add(0, name, f"`{number}` is no column of the file; they have the numbers 0 to {width - 1}")
    return columns


def _tag_column(sentences: Sequence[Sentence], width: int) -> int:
    """The last column that holds a tag, or the last of all."""
    for column in range(width - 1, 0, -1):
        if any(schemes.parse(cells[column]) for sentence in sentences for cells in sentence.cells):
            return column
    return width - 1


def _tags(sentence: Sentence, column: int, problems: Problems) -> list[schemes.Tag]:
    tags = []
    for row, cells in zip(sentence.rows, sentence.cells, strict=True):
        tag = schemes.parse(cells[column])
        if tag is None:
            known = ", ".join(f"{prefix}-" for prefix in schemes.PREFIXES)
            problems.add(row, "entities", f"`{cells[column][:40]}` is no tag: write O, or a type after one of {known}")
        tags.append(tag or ("", ""))
    return tags


def _tokens(sentence: Sentence, column: int, problems: Problems) -> list[str]:
    for row, cells in zip(sentence.rows, sentence.cells, strict=True):
        if not cells[column]:
            problems.add(row, "text", "there is no token")
    return [cells[column] for cells in sentence.cells]


def _report_slips(
    file: DataFile,
    sentences: Sequence[Sentence],
    spellings: Sequence[schemes.Spelling],
    prefixes: set[str],
    problems: Problems,
) -> None:
    """Adds slips to the problems, or to the warnings of the file where they are few."""
    found = [
        (sentence.rows[slip.at], slip.message)
        for sentence, slips in zip(sentences, schemes.slips(spellings, prefixes), strict=True)
        for slip in slips
    ]
    if len(found) > MAX_SLIPS * sum(len(spelling.entities) for spelling in spellings):
        for row, message in found:
            problems.add(row, "entities", message)
    else:
        file.warnings.extend(
            DataProblem(file=file.name, row=row, field="entities", message=message, count=1) for row, message in found
        )


def _example(tokens: Sequence[str], spelling: schemes.Spelling) -> Example:
    """A sentence as a text, and its entities by their characters."""
    starts, end = [], 0
    for token in tokens:
        starts.append(end)
        end += len(token) + 1
    entities = [
        (starts[first], starts[behind - 1] + len(tokens[behind - 1]), label)
        for first, behind, label in spelling.entities
    ]
    return " ".join(tokens), entities
