"""The ONNX graphs: scores of all items, what is ruled out, the best k.

All graphs take these inputs, with one row for each instance:

    k               int64    [batch, 1]  items wanted; the outputs have as many columns as the largest of them
    adjusted        int64    [batch, m]  items whose scores are changed; an item may be repeated
    adjustments     float32  [batch, m]  what is added to their scores: minus infinity excludes, 0 fills a row
    allowed         int64    [batch, a]  the items to choose from, ascending, filled up with the number of items
    is_restricted   bool     [batch, 1]  whether only those may be chosen; otherwise all

and give `items` int64 and `scores` float32, [batch, min(max k, items)], best first and the lower index first among
equals. What may not be chosen may stand at the end of a row with a score of minus infinity; its index says nothing.

Items are taken by blocks, so that the memory for scores is that of one block. Scores are written once and read once,
and items are excluded where their scores stand. The best of a block are found by the maxima of GROUP neighbouring items
each: the best k items lie in the k groups with the best maxima, the lower group first among equals, for each group
that is better holds at least one item that is. Only those groups are ranked item by item. So that groups are
whole, a block's row of scores is longer than the block, and ends with minus infinity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from luthier_recommendation.builder import Graph

Array = npt.NDArray[Any]

GROUP = 64
"""Items that share a maximum. Between 50 and 250 a million items take the same time."""
BLOCK = 262_144
"""Items whose scores are held at a time: 32 MB for 32 instances. Smaller blocks, and one for all, are no quicker."""


def dense(matrix: Array) -> onnx.ModelProto:
    """Scores are `query @ matrix`: `query` float32 [batch, d], `matrix` [d, items]."""
    graph = _Ranking(num_items=matrix.shape[1])
    query = graph.input("query", np.float32, "batch", len(matrix))
    products = (
        (graph.node("MatMul", query, graph.of_items(matrix, block)), block, None) for block in graph.blocks(BLOCK)
    )
    return graph.finished(*graph.best(products))


def factors(matrix: Array, inverse_norms: Array) -> onnx.ModelProto:
    """Scores are `query @ matrix`, times `inverse_norms` [items] where `is_similar` bool [batch, 1] is true.

    With the query of an item divided by its norm, those are cosines.
    """
    graph = _Ranking(num_items=matrix.shape[1])
    query = graph.input("query", np.float32, "batch", len(matrix))
    is_similar = graph.input("is_similar", np.bool_, "batch", 1)
    return graph.finished(*graph.best(_products(graph, query, is_similar, matrix, inverse_norms)))


def factors_of_candidates(matrix: Array, inverse_norms: Array) -> onnx.ModelProto:
    """As `factors`, with rows that are not ranked among all items but among some that were found for them before.

    Those rows are the ones where `scans` bool [batch, 1] is false. Their `candidates` are int64 [batch, c], ascending
    and filled up with the number of items, and `candidate_factors` float32 [batch, c, d] are theirs. Adjustments and
    allow lists change nothing in them.
    """
    num_items = matrix.shape[1]
    graph = _Ranking(num_items=num_items)
    node, constant = graph.node, graph.constant
    query = graph.input("query", np.float32, "batch", len(matrix))
    is_similar = graph.input("is_similar", np.bool_, "batch", 1)
    candidates = graph.input("candidates", np.int64, "batch", "c")
    candidate_factors = graph.input("candidate_factors", np.float32, "batch", "c", len(matrix))
    rows = graph.rows_where(graph.input("scans", np.bool_, "batch", 1))
    shape = node("Concat", node("Shape", query, start=0, end=1), graph.num_best, axis=0)

    graph.keep(rows)
    query_of_rows, is_similar = (node("GatherND", each, rows) for each in (query, is_similar))
    items, scores = graph.best(_products(graph, query_of_rows, is_similar, matrix, inverse_norms))
    nothing = constant(np.float32(-np.inf))
    items = node("ScatterND", node("Expand", constant(np.int64(num_items)), shape), rows, items)
    scores = node("ScatterND", node("Expand", nothing, shape), rows, scores)

    axis = graph.integers(2)
    products = node("Squeeze", node("MatMul", candidate_factors, node("Unsqueeze", query, axis)), axis)
    is_item = node("Less", candidates, constant(np.int64(num_items)))
    items = node("Concat", candidates, items, axis=1)
    scores = node("Concat", node("Where", is_item, products, nothing), scores, axis=1)
    return graph.finished(*graph.top(items, scores, graph.num_best))


def _products(
    graph: _Ranking, query: str, is_similar: str, matrix: Array, inverse_norms: Array
) -> Iterable[tuple[str, _Block, _Scale | None]]:
    """Products of each block, which are cosines in the rows of similar items."""
    rows = graph.rows_where(is_similar)
    for block in graph.blocks(BLOCK):
        scale = _Scale(is_similar, rows, graph.of_items(inverse_norms[None, :], block))
        yield graph.node("MatMul", query, graph.of_items(matrix, block)), block, scale


def neighbours(ids: Array, weights: Array) -> onnx.ModelProto:
    """Scores are sums of the weights with which the history's items point to their neighbours.

    `ids` [items, n] holds each item's neighbours, filled up with the number of items, `weights` [items, n] how near
    they are. The inputs are `history` int64 [batch, h], filled up with the number of items, and `history_weights`
    float32 [batch, h]. Items that nothing points to are excluded.
    """
    num_items = len(ids)
    graph = _Ranking(num_items=num_items)
    [whole] = graph.blocks(num_items)
    node, constant, flat = graph.node, graph.constant, graph.flat
    history = graph.input("history", np.int64, "batch", "h")
    history_weights = graph.input("history_weights", np.float32, "batch", "h")
    # Only the filled places go on, as one list of (instance, item, weight): histories differ widely in length.
    is_filled = node("Less", history, constant(np.int64(num_items)))
    taken = node("Compress", flat(history), flat(is_filled))
    row = node("Gather", node("NonZero", is_filled), constant(np.int64(0)))
    weight = node("Compress", flat(history_weights), flat(is_filled))
    # Each adds its neighbours' weights to its instance's stretch of one long row of scores.
    row_length, column = constant(np.int64(whole.row_length)), graph.integers(1)
    starts = node("Unsqueeze", node("Mul", row, row_length), column)
    targets = node("Cast", node("Gather", constant(ids.astype(np.int32)), taken), to=TensorProto.INT64)
    near = node("Gather", constant(weights.astype(np.float32)), taken)
    shares = node("Mul", near, node("Unsqueeze", weight, column))
    length = node("Mul", node("Shape", history, start=0, end=1), row_length)
    zeros = node("Expand", constant(np.float32(0)), length)
    positions = flat(node("Add", targets, starts))
    long_row = node("ScatterElements", zeros, positions, flat(shares), axis=0, reduction="add")
    sums = node("Reshape", long_row, graph.integers(-1, whole.row_length))
    is_near = node("Greater", sums, constant(np.float32(0)))
    scores = node("Where", is_near, sums, constant(np.float32(-np.inf)))
    return graph.finished(*graph.best([(scores, whole, None)]))


@dataclass(frozen=True)
class _Block:
    """Consecutive items."""

    begin: int
    size: int

    @property
    def num_groups(self) -> int:
        """With at least one place to spare."""
        return self.size // GROUP + 1

    @property
    def row_length(self) -> int:
        """Places of its groups."""
        return self.num_groups * GROUP


@dataclass(frozen=True)
class _Scale:
    """What some rows of scores are multiplied by."""

    applies: str
    """bool [batch, 1]"""
    rows: str
    """The indexes of those rows, int64 [n, 1]."""
    by: str
    """float32 [1, block.row_length]"""


class _Ranking(Graph):
    """A graph that ends with the best items of a row, and has the inputs that all have."""

    def __init__(self, *, num_items: int) -> None:
        super().__init__()
        self._num_items = num_items
        self._k = self.input("k", np.int64, "batch", 1)
        self._adjusted = self.input("adjusted", np.int64, "batch", "m")
        self._adjustments = self.input("adjustments", np.float32, "batch", "m")
        self._allowed = self.input("allowed", np.int64, "batch", "a")
        self._is_restricted = self.input("is_restricted", np.bool_, "batch", 1)
        largest_k = self.node("Reshape", self.node("ReduceMax", self._k, keepdims=0), self.integers(1))
        self.num_best = self.node("Min", largest_k, self.integers(num_items))
        """Columns of the outputs."""

    def rows_where(self, condition: str) -> str:
        """Indexes int64 [n, 1] of the rows where bool [batch, 1] is true."""
        return self.node("Transpose", self.node("NonZero", self.flat(condition)))

    def keep(self, rows: str) -> None:
        """Ranks these rows alone from here on."""
        for name in ("_k", "_adjusted", "_adjustments", "_allowed", "_is_restricted"):
            setattr(self, name, self.node("GatherND", getattr(self, name), rows))

    def blocks(self, size: int) -> list[_Block]:
        """All items, so many at a time."""
        begins = range(0, self._num_items, size)
        return [_Block(begin, min(size, self._num_items - begin)) for begin in begins]

    def of_items(self, rows: Array, block: _Block) -> str:
        """Keeps a block's columns of float32 [n, items], lengthened with ones."""
        lengthened = np.ones((len(rows), block.row_length), dtype=np.float32)
        lengthened[:, : block.size] = rows[:, block.begin : block.begin + block.size]
        return self.constant(lengthened)

    def best(self, scores: Iterable[tuple[str, _Block, _Scale | None]]) -> tuple[str, str]:
        """The best items and their scores, from the scores of each block, float32 [rows, block.row_length]."""
        items, values = zip(*(self._best_of_block(*each) for each in scores), strict=True)
        return self.top(self.node("Concat", *items, axis=1), self.node("Concat", *values, axis=1), self.num_best)

    def top(self, items: str, scores: str, count: str) -> tuple[str, str]:
        """The items with the best scores, and these."""
        values, places = self.nodes("TopK", scores, count, outputs=2, axis=1)
        return self.node("GatherElements", items, places, axis=1), values

    def finished(self, items: str, scores: str) -> onnx.ModelProto:
        """The model that gives these."""
        return self.model({"items": (items, np.int64), "scores": (scores, np.float32)}, "batch", "num_best")

    def _best_of_block(self, scores: str, block: _Block, scale: _Scale | None) -> tuple[str, str]:
        """Indexes among all items, and scores, of the best of a block."""
        node = self.node
        scores = self._adjust(scores, block)
        maxima = self._maxima(scores, block)
        if scale:
            # Most batches have no such rows, and then nothing is read or written here.
            scaled = node("Mul", node("GatherND", scores, scale.rows), scale.by)
            maxima = node("ScatterND", maxima, scale.rows, self._maxima(scaled, block))
        num_items = node("Min", self.num_best, self.integers(block.size))
        num_groups = node("Min", num_items, self.integers(block.num_groups))
        _, groups = self.nodes("TopK", maxima, num_groups, outputs=2, axis=1)
        # Of equals the last step takes the first, so candidates have to stand in the order of their indexes.
        groups, _ = self.nodes("TopK", groups, num_groups, outputs=2, axis=1, largest=0)
        begins = node("Unsqueeze", node("Mul", groups, self.constant(np.int64(GROUP))), self.integers(2))
        members = node("Add", begins, self.constant(np.arange(GROUP)[None, None, :]))
        unrestricted = node("Flatten", members, axis=1)
        nothing = self.constant(np.int64(block.size))
        candidates = node("Where", self._is_restricted, nothing, unrestricted)
        candidates = node("Concat", candidates, self._within(self._allowed, block), axis=1)
        values = node("GatherElements", scores, candidates, axis=1)
        if scale:
            factors = node("Gather", self.flat(scale.by), candidates)
            values = node("Where", scale.applies, node("Mul", values, factors), values)
        places, values = self.top(candidates, values, num_items)
        return node("Add", places, self.constant(np.int64(block.begin))), values

    def _adjust(self, scores: str, block: _Block) -> str:
        """Adds the adjustments, and minus infinity to what lengthens the rows."""
        items, values = self._within(self._adjusted, block), self._adjustments
        spare = np.arange(block.size, block.row_length)
        items, values = (
            self.node("Concat", given, self.node("Expand", self.constant(of_all), self.node("Shape", self._k)), axis=1)
            for given, of_all in ((items, spare[None, :]), (values, np.full((1, len(spare)), -np.inf, np.float32)))
        )
        return self.node("ScatterElements", scores, items, values, axis=1, reduction="add")

    def _within(self, items: str, block: _Block) -> str:
        """Places of items in a block's row; those of other items become its first place to spare."""
        if block.size == self._num_items:
            return items
        nothing = self.constant(np.int64(block.size))
        places = self.node("Sub", items, self.constant(np.int64(block.begin)))
        after, before = self.node("Less", places, nothing), self.node("Less", places, self.constant(np.int64(0)))
        return self.node("Where", self.node("And", after, self.node("Not", before)), places, nothing)

    def _maxima(self, scores: str, block: _Block) -> str:
        """The best score of each group."""
        grouped = self.node("Reshape", scores, self.integers(0, block.num_groups, GROUP))
        return self.node("ReduceMax", grouped, self.integers(2), keepdims=0)
