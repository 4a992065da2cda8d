"""Ranking metrics at 10, averaged over users.

Relevance is binary: an item of the scored examples is relevant to its user, every other item is not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING

from luthier.task import Evaluation, ParityFailed
from luthier.tasks.recommendation.v1.recommendation_pb2 import Prediction

if TYPE_CHECKING:
    import pyarrow as pa

CUTOFF = 10
"""Items of a ranking that count."""

_DISCOUNTS = tuple(1 / math.log2(rank + 2) for rank in range(CUTOFF))


def ndcg(ranked: Sequence[Hashable], relevant: Collection[Hashable]) -> float:
    """nDCG at 10 (Järvelin and Kekäläinen 2002), the ideal ranking cut at min(10, number of relevant items)."""
    gain = sum(discount for item, discount in zip(ranked, _DISCOUNTS, strict=False) if item in relevant)
    return gain / sum(_DISCOUNTS[: len(relevant)])


def average_precision(ranked: Sequence[Hashable], relevant: Collection[Hashable]) -> float:
    """Mean of the precisions at each hit among the first 10, over min(10, number of relevant items)."""
    hits, total = 0, 0.0
    for rank, item in enumerate(ranked[:CUTOFF], start=1):
        if item in relevant:
            hits += 1
            total += hits / rank
    return total / min(CUTOFF, len(relevant))


def relevant_items(examples: pa.Table) -> dict[str, set[str]]:
    """The items of each user, users in the order of their first example."""
    relevant: dict[str, set[str]] = {}
    for user, item in zip(examples["user"].to_pylist(), examples["item"].to_pylist(), strict=True):
        relevant.setdefault(user, set()).add(item)
    return relevant


def score(examples: pa.Table, predictions: Sequence[Prediction]) -> Evaluation:
    """Scores one prediction for each user of the examples, in the order of `relevant_items`.

    `ndcg_at_10`, `precision_at_10` (over 10 places, filled or not), `recall_at_10` and `map_at_10` are means over
    users; a user who was given nothing counts as 0. `coverage` is the share of items that stand in anyone's first 10,
    among all items that occur in the examples or in those tens. `num_examples` counts users.
    """
    sums = dict.fromkeys(("ndcg_at_10", "precision_at_10", "recall_at_10", "map_at_10"), 0.0)
    recommended: set[str] = set()
    known: set[str] = set()
    relevant = relevant_items(examples)
    for items, prediction in zip(relevant.values(), predictions, strict=True):
        ranked = [scored.item for scored in prediction.items[:CUTOFF]]
        hits = len(items.intersection(ranked))
        sums["ndcg_at_10"] += ndcg(ranked, items)
        sums["precision_at_10"] += hits / CUTOFF
        sums["recall_at_10"] += hits / len(items)
        sums["map_at_10"] += average_precision(ranked, items)
        recommended.update(ranked)
        known |= items
    metrics = {name: total / len(relevant) for name, total in sums.items()}
    metrics["coverage"] = len(recommended) / len(known | recommended)
    return Evaluation(num_examples=len(relevant), metrics=metrics)


def recall_of_index(exact: Sequence[Prediction], found: Sequence[Prediction], wanted: float) -> float:
    """The mean share of the exact best 10 items that are found, over the predictions that have any; 1 without such.

    Raises ParityFailed where it is below what is wanted.
    """
    shares = []
    for one, other in zip(exact, found, strict=True):
        best = {scored.item for scored in one.items[:CUTOFF]}
        if best:
            shares.append(len(best.intersection(scored.item for scored in other.items[:CUTOFF])) / len(best))
    recall = sum(shares) / len(shares) if shares else 1.0
    if recall < wanted:
        raise ParityFailed(
            f"the approximate index finds {recall:.4f} of the exact best {CUTOFF} items for {len(shares)} users, where "
            f"config.min_recall asks for {wanted:g}; lower it, or tune with index=EXACT; nothing was published"
        )
    return recall
