"""Images with boxes, as tables hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from luthier import images
from luthier_object_detection.files import SCHEMA

PNG = images.encode_png(np.full((40, 60, 3), 99, dtype=np.uint8))
"""60 pixels wide and 40 high."""


def entry(label: str, *corners: float, crowd: bool = False) -> dict[str, Any]:
    return {"label": label, **dict(zip(("x_min", "y_min", "x_max", "y_max"), corners, strict=True)), "crowd": crowd}


def table(*objects: list[dict[str, Any]], image: bytes = PNG) -> pa.Table:
    rows = [{"image": image, "name": f"{i}.png", "objects": listed} for i, listed in enumerate(objects)]
    return pa.Table.from_pylist(rows, SCHEMA)
