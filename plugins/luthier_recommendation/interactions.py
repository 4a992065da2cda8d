"""Interactions as a sparse matrix of users and items, for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_matrix

from luthier_recommendation.data import rank_within

Array = npt.NDArray[Any]

HELD_SHARE = 0.2
"""Share of each user's interactions that choose the settings where the data set has no validation part."""


@dataclass(frozen=True)
class Interactions:
    """All interactions, and those of them that settings are chosen on.

    Items are ordered by their number of users, most first, then by id, so that among equal scores the more popular item
    wins wherever the lower index does. Users are ordered by id.
    """

    users: list[str]
    items: list[str]
    all: csr_matrix
    """float32 [users, items]: summed weights, or 1 where weights do not count."""
    held: csr_matrix
    """The part of `all` that is held out to choose settings, of the same shape."""
    is_drawn: bool
    """Whether `held` was drawn, not given as the data set's validation part."""

    @classmethod
    def of(cls, parts: Mapping[str, pa.Table], *, use_weights: bool, seed: int) -> Interactions:
        """Joins the parts `train` and `validation`; without the latter, a share of each user's items is held out."""
        names = [name for name in ("train", "validation") if name in parts]
        tables = [parts[name].select(["user", "item", "weight"]) for name in names]
        joined = pa.concat_tables(tables)
        users, rows = _codes(joined["user"])
        items, columns = _codes(joined["item"])
        shape = (len(users), len(items))
        weights = joined["weight"].to_numpy().astype(np.float32)
        matrix = csr_matrix((weights, (rows, columns)), shape=shape)
        if not use_weights:
            matrix.data[:] = 1
        order = np.lexsort((np.arange(len(items)), -matrix.getnnz(axis=0)))
        matrix = matrix[:, order].tocsr()
        matrix.sort_indices()
        in_train = np.arange(len(joined)) < len(tables[0])
        is_drawn = bool(in_train.all())
        if is_drawn:
            is_held = _drawn(matrix, seed)
        else:
            train = csr_matrix((in_train.astype(np.int32), (rows, columns)), shape=shape)[:, order]
            entries = np.repeat(np.arange(shape[0]), np.diff(matrix.indptr)), matrix.indices
            is_held = np.asarray(train[entries]).ravel() == 0
        return cls(users, [items[i] for i in order], matrix, _kept(matrix, is_held), is_drawn)

    def redrawn(self, seed: int) -> Interactions:
        """The same with another share of each user's items held out."""
        return replace(self, held=_kept(self.all, _drawn(self.all, seed)))

    @property
    def rest(self) -> csr_matrix:
        """`all` without `held`."""
        rest = (self.all - self.held).tocsr()
        rest.eliminate_zeros()
        return rest

    @property
    def mean_weight(self) -> float:
        """Mean weight of an interaction."""
        return float(self.all.data.mean())


def _codes(column: pa.ChunkedArray) -> tuple[list[str], Array]:
    """The distinct ids in order, and for each row the number of its id."""
    distinct = pc.unique(column).sort()
    return distinct.to_pylist(), pc.index_in(column, distinct).to_numpy()


def _drawn(matrix: csr_matrix, seed: int) -> Array:
    """Marks a random share of each user's entries, rounded to the nearest number, halves down."""
    users = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    ranks, sizes = rank_within(users, np.random.default_rng(seed).random(matrix.nnz))
    return ranks < np.ceil(sizes * HELD_SHARE - 0.5)


def _kept(matrix: csr_matrix, keep: Array) -> csr_matrix:
    """The marked entries of a matrix."""
    kept = csr_matrix((matrix.data * keep, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
    kept.eliminate_zeros()
    return kept
