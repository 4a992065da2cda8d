"""The approximate index: a graph of near neighbours that leads to the items with the highest products.

HNSW of faiss over the items' factors (Malkov and Yashunin 2016), by inner product. It is built on one thread, so that
the same factors give the same file, and mapped into memory to be served.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.task import FailedPrecondition

Array = npt.NDArray[Any]

FILE = "index.faiss"
NEIGHBOURS, CONSTRUCTION = 32, 128
"""Links of an item to others, on the lowest level twice as many, and candidates among which they are chosen. Half
of both is built in two thirds of the time, and needs eight times the expansion where many of the best are excluded."""
EXPANSIONS = (32, 64, 128, 256, 512, 1024, 2048)
"""Candidates that a search keeps: more of them find more, and take longer."""


class Index:
    """An opened index. Thread-safe."""

    def __init__(self, directory: Path, expansion: int) -> None:
        """Raises FailedPrecondition where faiss is not installed."""
        self._faiss = library()
        self._index = self._faiss.read_index(str(directory / FILE), self._faiss.IO_FLAG_MMAP_IFC)
        self._expansion = expansion

    def search(self, query: Array, excluded: Array, k: int) -> Array:
        """At most k items, ascending, that are not excluded, for a query float32 [f]; fewer where no more are found."""
        parameters: dict[str, Any] = {"efSearch": self._expansion}
        if excluded.size:
            among = self._faiss.IDSelectorBatch(np.asarray(excluded, dtype=np.int64))
            parameters["sel"] = self._faiss.IDSelectorNot(among)
        _, found = self._index.search(query[None, :], k, params=self._faiss.SearchParametersHNSW(**parameters))
        return np.sort(found[found >= 0])


def build(directory: Path, item_factors: Array) -> None:
    """Writes the index of factors float32 [items, f]."""
    faiss = library()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index = faiss.IndexHNSWFlat(item_factors.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = CONSTRUCTION
        index.add(np.ascontiguousarray(item_factors, dtype=np.float32))
    finally:
        faiss.omp_set_num_threads(threads)
    faiss.write_index(index, str(directory / FILE))


def best(item_factors: Array, query: Array, excluded: Array, k: int) -> Array:
    """The best k items that are not excluded, in no order, found by scoring all."""
    scores = item_factors @ query
    scores[excluded] = -np.inf
    found = np.argpartition(-scores, min(k, len(scores)) - 1)[:k]
    return np.asarray(found[scores[found] > -np.inf])


def recall(index: Index, queries: Sequence[tuple[Array, Array]], exact: Sequence[Array], k: int) -> float:
    """The mean share of the exact best items that the index finds, over queries [f] with what each excludes."""
    found = (len(np.intersect1d(all, index.search(*query, k))) for query, all in zip(queries, exact, strict=True))
    shares = [count / len(all) for count, all in zip(found, exact, strict=True) if len(all)]
    return float(np.mean(shares)) if shares else 1.0


def library() -> Any:
    """faiss. Raises FailedPrecondition where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise FailedPrecondition(
            "an approximate index needs the package faiss-cpu: install luthier[ann], or tune with index=EXACT"
        ) from error
    return faiss
