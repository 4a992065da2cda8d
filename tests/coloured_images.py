"""Images of three classes that their colour tells apart."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from luthier import images

COLOURS = {"red": 0, "green": 1, "blue": 2}


def image(label: str, seed: int, side: int = 40) -> np.ndarray:
    """Noise in which the label's channel is brighter."""
    noise = np.random.default_rng(seed).integers(0, 150, (side, side, 3), dtype=np.uint8)
    noise[..., COLOURS[label]] += 100
    return noise


def png(label: str = "red", seed: int = 0) -> bytes:
    return images.encode_png(image(label, seed))


def examples(count: int, seed: int) -> pa.Table:
    labels = [list(COLOURS)[i % 3] for i in range(count)]
    encoded = [png(label, seed * 1000 + i) for i, label in enumerate(labels)]
    return pa.table({"image": pa.array(encoded, pa.large_binary()), "label": labels, "name": [""] * count})
