"""Simulates the purchases of a bookshop's readers.

Each reader likes a few genres, some authors within them, and now and then a title that everyone buys; who takes up a
series tends to go on with it. Nothing of this is told to the recommender, which sees only who bought what.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CATALOGUE = Path(__file__).with_name("catalogue.csv")
"""360 invented books: genre, author, series, volume, title."""

NUM_READERS = 1500
MEAN_BOOKS = 20
"""Different books that a reader buys on average."""
OPENING = 1_672_531_200
"""When the simulated shop opens: 2023-01-01, in seconds since 1970."""
OPEN_S = 2 * 365 * 24 * 3600
"""How long it is open, in seconds."""


@dataclass(frozen=True)
class Book:
    """A book of the catalogue. `series` and `volume` are empty and 0 for a book that stands alone."""

    id: str
    genre: str
    author: str
    series: str
    volume: int
    title: str

    @property
    def label(self) -> str:
        """Title, series and author, as a shop's list prints them."""
        series = f" ({self.series} {self.volume})" if self.series else ""
        return f"{self.title}{series}, {self.author}"


@dataclass(frozen=True)
class Purchase:
    """A reader bought so many copies of a book, `time` in seconds since 1970."""

    reader: str
    book: str
    copies: int
    time: int


def read_catalogue() -> list[Book]:
    """The books, with ids `b001`, `b002`, … in the order of the file."""
    with CATALOGUE.open(encoding="utf-8", newline="") as file:
        return [
            Book(f"b{number:03}", row["genre"], row["author"], row["series"], int(row["volume"] or 0), row["title"])
            for number, row in enumerate(csv.DictReader(file), start=1)
        ]


def simulate(books: Sequence[Book], *, seed: int = 42, num_readers: int = NUM_READERS) -> list[Purchase]:
    """Draws what every reader buys, in the order of time. The same seed gives the same purchases."""
    rng = np.random.default_rng(seed)
    appeal = _appeal(books, rng, num_readers)
    # The largest log-weights under Gumbel noise are a draw without replacement in proportion to the weights.
    ranking = np.argsort(-(appeal + rng.gumbel(size=appeal.shape)), axis=1)
    num_books = np.clip(rng.lognormal(np.log(MEAN_BOOKS) - 0.125, 0.5, num_readers).astype(int), 5, len(books) // 4)
    purchases = []
    for reader in range(num_readers):
        bought = _in_order_of_volumes([books[i] for i in ranking[reader, : num_books[reader]]])
        times = OPENING + np.sort(rng.integers(0, OPEN_S, len(bought)))
        copies = 1 + rng.binomial(2, 0.04, len(bought))  # a second copy is a present
        purchases += [
            Purchase(f"r{reader + 1:04}", book.id, int(count), int(time))
            for book, count, time in zip(bought, copies, times, strict=True)
        ]
    return sorted(purchases, key=lambda purchase: (purchase.time, purchase.reader))


def write(directory: Path, *, seed: int = 42, num_readers: int = NUM_READERS) -> tuple[Path, Path]:
    """Writes `purchases.csv` (reader, book, copies, time) and `books.csv` (book, title); returns their paths."""
    books = read_catalogue()
    purchases, titles = directory / "purchases.csv", directory / "books.csv"
    rows = ((p.reader, p.book, p.copies, p.time) for p in simulate(books, seed=seed, num_readers=num_readers))
    _write_csv(purchases, ("reader", "book", "copies", "time"), rows)
    _write_csv(titles, ("book", "title"), ((book.id, book.label) for book in books))
    return purchases, titles


def _appeal(books: Sequence[Book], rng: np.random.Generator, num_readers: int) -> NDArray[np.float64]:
    """Log-weight of each book for each reader, [readers, books]: taste in genres, authors and series, and fame."""
    genres, genre_of = np.unique([book.genre for book in books], return_inverse=True)
    authors, author_of = np.unique([book.author for book in books], return_inverse=True)
    fame = rng.normal(0.0, 1.3, len(books))
    taste_genre = np.log(rng.dirichlet(np.full(len(genres), 0.15), num_readers) + 0.002)
    taste_author = rng.normal(0.0, 1.2, (num_readers, len(authors)))
    # A reader is either taken by a series or not; only authors of series gain.
    writes_series = np.isin(authors, [book.author for book in books if book.series])
    hooked = 2.0 * (rng.random((num_readers, len(authors))) < 0.2) * writes_series
    appeal: NDArray[np.float64] = taste_genre[:, genre_of] + (taste_author + hooked)[:, author_of] + fame
    return appeal


def _in_order_of_volumes(bought: Sequence[Book]) -> list[Book]:
    """The books in the order given, but the volumes of each series among themselves from the first to the last."""
    volumes: dict[str, list[Book]] = {}
    for book in sorted(bought, key=lambda book: -book.volume):
        volumes.setdefault(book.series, []).append(book)
    return [volumes[book.series].pop() if book.series else book for book in bought]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
