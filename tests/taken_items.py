"""Users who take items, as tables hold them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def simulated(num_users: int = 200, num_items: int = 120, seed: int = 0) -> pa.Table:
    """Users take items that are popular and close to their taste, 15 to 40 each."""
    random = np.random.default_rng(seed)
    taste, kind = random.normal(size=(num_users, 4)), random.normal(size=(num_items, 4))
    liking = 1.2 * taste @ kind.T + random.normal(size=num_items)
    rows = []
    for user, row in enumerate(liking):
        chance = np.exp(row - row.max())
        size = int(random.integers(15, 40))
        taken = random.choice(num_items, size, replace=False, p=chance / chance.sum())
        rows += [(f"u{user}", f"i{item}", float(random.integers(1, 6)), 0.0) for item in taken]
    return table(rows)


def table(rows: Sequence[tuple[str, str, float, float]]) -> pa.Table:
    user, item, weight, time = zip(*rows, strict=True) if rows else ([], [], [], [])
    schema = pa.schema([("user", pa.string()), ("item", pa.string()), ("weight", pa.float64()), ("time", pa.float64())])
    return pa.table([list(user), list(item), list(weight), list(time)], schema=schema)


def titles(num_items: int) -> pa.Table:
    return pa.table({"item": [f"i{i}" for i in range(num_items)], "title": [f"Title {i}" for i in range(num_items)]})
