"""The files of a bundle beside `model.onnx`: what was learnt from, in arrays that are mapped, not read.

model.json            format, algorithm, settings and sizes
users.*.npy           ids of the users, see `texts.Ids`
items.*.npy           ids of the items
titles.*.npy          titles of the items, where the data set has titles; see `texts.Texts`
index.faiss           the approximate index, where there is one, see `index`
seen.indptr.npy       int64 [users + 1]: where each user's items begin in the next two
seen.indices.npy      int32: items of the users
seen.weights.npy      float32: their weights, where weights count
*.npy                 further arrays of the algorithm, see `queries`

Format 1 had ids and titles in the lists users.json, items.json and titles.json, and graphs with the inputs of `older`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.task import FailedPrecondition
from luthier_recommendation.texts import Ids, Texts

Array = npt.NDArray[Any]

FORMAT = 2
"""Of the bundles that are written; this one and older ones are read."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `model.json` says."""

    algorithm: str
    """Name of the algorithm, for EASE with its side: one of `queries.QUERIES`."""
    settings: Mapping[str, float]
    """The settings that the model was made with."""
    interactions: int
    """Pairs of user and item that it learnt from."""
    mean_weight: float
    """Mean weight of an interaction: what an item of a history counts."""
    expansion: int = 0
    """How widely the approximate index is searched, see `index.EXPANSIONS`; 0 where there is none."""
    format: int = FORMAT
    """Of the bundle."""


@dataclass(frozen=True)
class Rows:
    """A sparse matrix by rows."""

    indptr: Array
    indices: Array
    weights: Array | None
    """None where all are 1."""

    def of(self, row: int) -> tuple[Array, Array]:
        """Columns and weights of one row."""
        span = slice(int(self.indptr[row]), int(self.indptr[row + 1]))
        columns = self.indices[span]
        return columns, np.ones(len(columns), np.float32) if self.weights is None else self.weights[span]

    def combined(self, rows: Array, factors: Array, width: int) -> Array:
        """The sum of rows, each times its factor: float64 [width]."""
        starts = self.indptr[rows]
        lengths = self.indptr[rows + 1] - starts
        ends = np.cumsum(lengths)
        positions = np.arange(int(lengths.sum())) + np.repeat(starts - ends + lengths, lengths)
        values = np.repeat(factors, lengths)
        if self.weights is not None:
            values = values * self.weights[positions]
        return np.bincount(self.indices[positions], weights=values, minlength=width)


class Files:
    """An opened bundle."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.description = _description(directory)
        self.users = Ids(self._texts("users", Ids))
        self.items = Ids(self._texts("items", Ids))
        has_titles = any((directory / name).exists() for name in ("titles.text.npy", "titles.json"))
        self.titles = Texts(self._texts("titles", Texts)) if has_titles else None
        self.seen = self.rows("seen")

    def array(self, name: str) -> Array:
        """One of the arrays, mapped into memory."""
        # The base class, for slices of numpy.memmap cost microseconds each.
        return np.asarray(np.load(self._directory / f"{name}.npy", mmap_mode="r"))

    def _texts(self, name: str, kind: type[Texts]) -> Mapping[str, Array]:
        """Arrays of `kind`, made from a list in format 1."""
        if self.description.format == 1:
            return kind.arrays_of(_read(self._directory / f"{name}.json"))
        return {part: self.array(f"{name}.{part}") for part in kind.parts}

    def rows(self, name: str) -> Rows:
        """One of the sparse matrices."""
        weights = self._directory / f"{name}.weights.npy"
        return Rows(
            self.array(f"{name}.indptr"),
            self.array(f"{name}.indices"),
            self.array(f"{name}.weights") if weights.exists() else None,
        )


def write(
    directory: Path,
    description: Description,
    *,
    users: Sequence[str],
    items: Sequence[str],
    titles: Mapping[str, str],
    arrays: Mapping[str, Array],
) -> None:
    """Writes all files but the model."""
    text = json.dumps(asdict(description), ensure_ascii=False, separators=(",", ":"))
    (directory / "model.json").write_text(text, encoding="utf-8")
    texts = {"users": Ids.arrays_of(users), "items": Ids.arrays_of(items)}
    if titles:
        texts["titles"] = Texts.arrays_of(titles.get(item, "") for item in items)
    parts = {f"{name}.{part}": array for name, each in texts.items() for part, array in each.items()}
    for name, array in {**parts, **arrays}.items():
        np.save(directory / f"{name}.npy", np.ascontiguousarray(array))


def rows_to_arrays(name: str, matrix: Any) -> dict[str, Array]:
    """The arrays that hold a scipy CSR matrix, for `Files.rows`."""
    arrays = {f"{name}.indptr": matrix.indptr.astype(np.int64), f"{name}.indices": matrix.indices.astype(np.int32)}
    if (matrix.data != 1).any():
        arrays[f"{name}.weights"] = matrix.data.astype(np.float32)
    return arrays


def _description(directory: Path) -> Description:
    described = {"format": 1, **_read(directory / "model.json")}
    if described["format"] > FORMAT:
        raise FailedPrecondition(
            f"the bundle is a recommender of format {described['format']}, this server reads up to {FORMAT}; "
            "update the server"
        )
    return Description(**described)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
