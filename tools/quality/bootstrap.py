"""How sure it is that one model is better than another on a test part: the paired bootstrap over its examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from google.protobuf.message import Message

from luthier.task import Task

MEANS = ("accuracy", "ndcg_at_10")
"""Metrics that are the mean of each prediction's own, so that nothing has to be scored again."""


def interval(
    task: Task,
    metric: str,
    examples: pa.Table,
    first: Sequence[Message],
    second: Sequence[Message],
    resamples: int,
) -> tuple[float, float]:
    """The 95 % percentile interval of the first model's advantage, for predictions of `task.instances(examples)`."""
    rows = [list(group) for group in task.rows(examples)]
    random = np.random.default_rng(0)

    def score(chosen: Sequence[int], predictions: Sequence[Message]) -> float:
        taken = examples.take([row for index in chosen for row in rows[index]])
        return task.score(taken, [predictions[index] for index in chosen]).metrics[metric]

    everything = range(len(rows))
    samples = (random.integers(len(rows), size=len(rows)) for _ in range(resamples))
    if metric in MEANS:
        alone = np.array([score([index], first) - score([index], second) for index in everything])
        differences = [alone[sample].mean() for sample in samples]
    else:
        differences = [score(sample.tolist(), first) - score(sample.tolist(), second) for sample in samples]
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)
