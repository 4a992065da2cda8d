"""The inputs of graphs in bundles of format 1.

They have `mask` in place of `allowed` and `is_restricted`, which is added to all scores: float32 [batch, 1 or items],
0, or minus infinity where an allow list excludes. And they have `scale` in place of `is_similar`, by which all scores
are multiplied: float32 [batch, 1 or items].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier_recommendation.files import Files

Array = npt.NDArray[Any]


def inputs(inputs: Mapping[str, Array], files: Files) -> dict[str, Array]:
    """Makes them from those of `graphs`."""
    old = {name: array for name, array in inputs.items() if name not in ("allowed", "is_restricted", "is_similar")}
    old["mask"] = _mask(inputs["allowed"], inputs["is_restricted"][:, 0], len(files.items))
    if "is_similar" in inputs:
        is_similar, ones = inputs["is_similar"], np.ones((len(inputs["k"]), 1), dtype=np.float32)
        old["scale"] = np.where(is_similar, files.array("inverse_norms"), ones) if is_similar.any() else ones
    return old


def _mask(allowed: Array, is_restricted: Array, num_items: int) -> Array:
    if not is_restricted.any():
        return np.zeros((len(allowed), 1), dtype=np.float32)
    mask = np.zeros((len(allowed), num_items), dtype=np.float32)
    mask[is_restricted] = -np.inf
    for row, items in zip(mask, allowed, strict=True):
        row[items[items < num_items]] = 0
    return mask
