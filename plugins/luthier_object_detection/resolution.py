"""The size of a detector's input, fitted to the images and to how small the objects in them are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from luthier import images

if TYPE_CHECKING:
    import pyarrow as pa

SIDE, MOST_SIDE = 416, 640
"""Longer side in pixels, and where objects are small."""
SMALL_OBJECT = 16.0
"""Pixels of the input that the smaller objects should have: two places of the finest feature map, of stride 8."""
SMALLER = 0.1
"""Share of the objects that are smaller than what is meant by that."""
MOST_STRETCH = 2.0
"""How many times longer one side of the input may be than the other."""
MULTIPLE = 32
"""Strides of the feature maps divide it."""
LEAST_SIDE = 64
"""Below, the coarsest map of a backbone has one place."""


def input_size(train: pa.Table, longer_side: int) -> tuple[int, int]:
    """(height, width) of the input for the images of `train`.

    The aspect is the geometric mean of the images', as all are stretched to it: of tall and wide ones in equal numbers
    it is a square. Where `longer_side` is 0, it is SIDE, up to MOST_SIDE where the smaller objects would have less than
    SMALL_OBJECT pixels, and no more than the median image has.
    """
    headers = [images.inspect(image) for image in train["image"].to_pylist()]
    aspect = float(np.exp(np.mean([math.log(header.width / header.height) for header in headers])))
    aspect = min(max(aspect, 1 / MOST_STRETCH), MOST_STRETCH)
    longest = np.array([max(header.width, header.height) for header in headers])
    side = float(longer_side) or min(_fitting_side(train, longest), float(np.median(longest)))
    height, width = (side, side * aspect) if aspect < 1 else (side / aspect, side)
    return _rounded(height), _rounded(width)


def _fitting_side(train: pa.Table, longest: np.ndarray) -> float:
    sizes = [
        math.sqrt((entry["x_max"] - entry["x_min"]) * (entry["y_max"] - entry["y_min"])) / longer
        for listed, longer in zip(train["objects"].to_pylist(), longest, strict=True)
        for entry in listed
        if not entry["crowd"]
    ]
    return min(max(SIDE, SMALL_OBJECT / float(np.quantile(sizes, SMALLER))), MOST_SIDE)


def _rounded(side: float) -> int:
    """To the next multiple, from a third of one on."""
    return max(LEAST_SIDE, math.ceil(side / MULTIPLE - 1 / 3) * MULTIPLE)
