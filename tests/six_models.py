"""A model of each task in one home, tuned for no more than to answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from luthier import images
from luthier.v1.dataset_pb2 import Split
from luthier_client import Client
from support import Server, interactions

MODELS = {
    "shop": "recommendation",
    "mail": "text-classification",
    "names": "entity-recognition",
    "photos": "image-classification",
    "boxes": "object-detection",
    "masks": "semantic-segmentation",
}
"""Tasks by the names of their models; the data sets are called the same."""

_COUNT = 48
_SIDE = 32


def scene(number: int) -> np.ndarray:
    """uint8 [side, side, 3]: noise with a square of one of two colours in its middle."""
    image = np.random.default_rng(number).integers(90, 160, (_SIDE, _SIDE, 3), dtype=np.uint8)
    image[8:24, 8:24, number % 2] = 250
    return image


def tune(server: Server, folder: Path) -> None:
    """Makes the data sets and fine-tunes the models, one after the other."""
    with Client(server.address) as client:
        for name, task in MODELS.items():
            path = _WRITERS[task](folder / name)
            split = None if task == "recommendation" else Split(method="hash", fractions=[0.6, 0.2, 0.2], seed=1)
            client.create_dataset(name, path, task=task, split=split).result(timeout=120)
        operations = [
            client.fine_tune(name, task=task, dataset=name, parity_tolerance=1, **tuning(task))
            for name, task in MODELS.items()
        ]
        for operation in operations:
            operation.result(timeout=300)


def tuning(task: str) -> dict[str, Any]:
    if task == "recommendation":
        return {"config": {"algorithm": "ALGORITHM_EASE", "regularization": 10}}
    texts = task in ("text-classification", "entity-recognition")
    config = {"epochs": 1, "max_length": 32} if texts else {"epochs": 1, "image_size": 64}
    return {"base": "luthier-text" if texts else "luthier-vision", "config": config}


def _shop(path: Path) -> Path:
    return interactions(path.with_suffix(".csv"))


def _mail(path: Path) -> Path:
    rows = [f"{'cheap pills now' if i % 2 else 'see you at noon'} {i},{'spam' if i % 2 else 'ham'}" for i in range(80)]
    path.with_suffix(".csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return path.with_suffix(".csv")


def _names(path: Path) -> Path:
    text = "".join(f"Ann{i} B-PER\nflew O\nto O\nOslo{i} B-LOC\n\n" for i in range(_COUNT))
    path.with_suffix(".conll").write_text(text, encoding="utf-8")
    return path.with_suffix(".conll")


def _photos(path: Path) -> Path:
    for i in range(_COUNT):
        (path / f"kind{i % 2}").mkdir(parents=True, exist_ok=True)
        (path / f"kind{i % 2}" / f"{i}.png").write_bytes(images.encode_png(scene(i)))
    return path


def _boxes(path: Path) -> Path:
    path.mkdir()
    for i in range(_COUNT):
        (path / f"{i}.png").write_bytes(images.encode_png(scene(i)))
    listed = [{"id": i, "file_name": f"{i}.png", "width": _SIDE, "height": _SIDE} for i in range(_COUNT)]
    boxes = [{"id": i, "image_id": i, "category_id": i % 2 + 1, "bbox": [8, 8, 16, 16]} for i in range(_COUNT)]
    kinds = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    (path / "all.json").write_text(json.dumps({"images": listed, "annotations": boxes, "categories": kinds}))
    return path


def _masks(path: Path) -> Path:
    (path / "images").mkdir(parents=True)
    (path / "masks").mkdir()
    for i in range(_COUNT):
        mask = np.zeros((_SIDE, _SIDE), np.uint8)
        mask[8:24, 8:24] = i % 2 + 1
        (path / "images" / f"{i}.png").write_bytes(images.encode_png(scene(i)))
        (path / "masks" / f"{i}.png").write_bytes(images.encode_png(mask))
    return path


_WRITERS: dict[str, Callable[[Path], Path]] = {
    "recommendation": _shop,
    "text-classification": _mail,
    "entity-recognition": _names,
    "image-classification": _photos,
    "object-detection": _boxes,
    "semantic-segmentation": _masks,
}
