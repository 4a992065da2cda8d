"""How numbers are spread, for the statistics of data sets: quantiles and a histogram, the same for every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
BINS = 10


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Quantiles of numbers, rounded to whole ones, and under `histogram` the rows `from`, `to` (exclusive), `count`.

    Up to BINS bins of one width lie below the 99th percentile; what is above joins the last, so that one very long text
    does not press all others into the first. Without numbers all quantiles are 0 and there are no rows.
    """
    import numpy as np

    if not len(values):
        return {**dict.fromkeys(QUANTILES, 0), "histogram": []}
    numbers = np.asarray(values, dtype=np.float64)
    found = dict(zip(QUANTILES, np.quantile(numbers, list(QUANTILES.values())), strict=True))
    low, high = np.floor(found["min"]), np.floor(found["p99"]) + 1
    width = max(1.0, np.ceil((high - low) / BINS))
    edges = low + width * np.arange(int(np.ceil((high - low) / width)) + 1)
    edges[-1] = max(edges[-1], np.floor(found["max"]) + 1)
    counts, _ = np.histogram(numbers, edges)
    rows = [
        {"from": int(start), "to": int(end), "count": int(count)}
        for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return {**{name: round(float(value)) for name, value in found.items()}, "histogram": rows}
