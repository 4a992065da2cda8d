"""Draws photographs, of a kind, of fruit on a table: what the demo's three vision tasks learn from.

Fruit vary in size, turn, colour and light, lie over one another, and stand on wood, cloth or slate. What is drawn is
known, so each picture comes with the class, the box and the pixels of every fruit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]
KINDS = ("apple", "lemon", "orange", "pear", "plum", "strawberry")
_OVERSAMPLED = 2


@dataclass(frozen=True)
class Scene:
    """A picture, and what is on it."""

    image: NDArray[np.uint8]
    """[height, width, 3]"""
    mask: NDArray[np.uint8]
    """[height, width]: 0 for the table, 1 + k for KINDS[k]."""
    fruit: list[tuple[str, tuple[int, int, int, int]]]
    """Kind and box (left, top, width, height) of each fruit of which something is seen."""


def write_folders(folder: Path, per_kind: int = 40, seed: int = 1) -> Path:
    """One picture a fruit, in a folder for each kind."""
    random = np.random.default_rng(seed)
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        for number in range(per_kind):
            scene = draw(random, 96, 96, [kind], radius=(0.26, 0.46))
            Image.fromarray(scene.image).save(folder / kind / f"{number:03}.jpg", quality=88)
    return folder


def write_coco(folder: Path, count: int = 160, seed: int = 2) -> Path:
    """Pictures of up to five fruit with their boxes, in COCO's format."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes(count, seed)):
        name = f"{number:03}.jpg"
        Image.fromarray(scene.image).save(folder / "images" / name, quality=88)
        height, width = scene.mask.shape
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for kind, box in scene.fruit:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": KINDS.index(kind) + 1,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": kind} for number, kind in enumerate(KINDS, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_masks(folder: Path, count: int = 160, seed: int = 3) -> Path:
    """The like with a mask of every picture, and the names of its values."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number, scene in enumerate(scenes(count, seed)):
        Image.fromarray(scene.image).save(folder / "images" / f"{number:03}.jpg", quality=88)
        Image.fromarray(scene.mask).save(folder / "masks" / f"{number:03}.png")
    (folder / "classes.txt").write_text("\n".join(["table", *KINDS]) + "\n", encoding="utf-8")
    return folder


def scenes(count: int, seed: int) -> list[Scene]:
    """Pictures of 160 by 128 pixels with one to five fruit; now and then the table is empty."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        number = 0 if random.random() < 0.05 else int(random.integers(1, 6))
        kinds = [KINDS[k] for k in random.integers(len(KINDS), size=number)]
        found.append(draw(random, 128, 160, kinds, radius=(0.13, 0.26)))
    return found


def draw(random: np.random.Generator, height: int, width: int, kinds: list[str], radius: tuple[float, float]) -> Scene:
    """Draws fruit of these kinds, each over those before; radii are shares of the shorter side."""
    tall, wide = height * _OVERSAMPLED, width * _OVERSAMPLED
    canvas = _table(random, tall, wide)
    mask = np.zeros((tall, wide), dtype=np.int64)
    for number, kind in enumerate(kinds, 1):
        size = random.uniform(*radius) * min(tall, wide)
        centre = random.uniform(size * 0.8, tall - size * 0.8), random.uniform(size * 0.8, wide - size * 0.8)
        inside, colour, shade = _fruit(random, kind, tall, wide, centre, size)
        canvas *= 1 - 0.45 * shade[..., None]
        canvas[inside] = colour[inside]
        mask[inside] = number
    light = random.uniform(0.8, 1.1) * (1 + random.uniform(-0.06, 0.06, 3))
    small = canvas.reshape(height, _OVERSAMPLED, width, _OVERSAMPLED, 3).mean((1, 3)) * light
    noisy = small + random.normal(0, random.uniform(1, 7), small.shape)
    owner = mask[::_OVERSAMPLED, ::_OVERSAMPLED]
    values = np.array([0, *(KINDS.index(kind) + 1 for kind in kinds)], dtype=np.uint8)
    return Scene(np.clip(noisy, 0, 255).astype(np.uint8), values[owner], _boxes(owner, kinds))


def _boxes(owner: NDArray[np.int64], kinds: list[str]) -> list[tuple[str, tuple[int, int, int, int]]]:
    found = []
    for number, kind in enumerate(kinds, 1):
        rows, columns = np.nonzero(owner == number)
        if len(rows) >= 20:
            left, top = int(columns.min()), int(rows.min())
            found.append((kind, (left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)))
    return found


def _fruit(
    random: np.random.Generator, kind: str, height: int, width: int, centre: tuple[float, float], size: float
) -> tuple[NDArray[np.bool_], Array, Array]:
    """Where a fruit is, its colours [height, width, 3], and how dark it makes what is around it."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    down, right = (y - centre[0]) / size, (x - centre[1]) / size
    turn = random.normal(0, 0.5) if random.random() < 0.8 else random.uniform(-np.pi, np.pi)
    up, across = -(down * np.cos(turn) + right * np.sin(turn)), right * np.cos(turn) - down * np.sin(turn)
    angle, distance = np.arctan2(across, up), np.hypot(up, across)
    outline = _OUTLINES[kind](np.abs(angle)) * (1 + 0.03 * np.sin(3 * angle + random.uniform(0, 6)))
    inside = distance < outline
    depth = np.clip(distance / outline, 0, 1)
    shadow = np.clip(1.25 - np.hypot(down - 0.18, right - 0.18) / outline, 0, 0.5) * 2
    colours = _COLOURS[kind]
    base = np.array(colours[random.integers(len(colours))]) + random.uniform(-16, 16, 3)
    lit = 1.08 - 0.55 * depth**3 - 0.22 * (down + right)
    colour = base * lit[..., None]
    gleam = np.exp(-((down + 0.35) ** 2 + (right + 0.35) ** 2) / 0.03)
    colour += 90 * gleam[..., None]
    if kind == "strawberry":
        seeds = (np.sin(up * 15 + np.round(across * 4) * np.pi) > 0.86) & (np.sin(across * 15) ** 2 > 0.6)
        colour[seeds & (depth < 0.93)] = (235, 205, 120)
    if kind in ("orange", "lemon"):
        colour += random.normal(0, 7, (height, width, 1))
    stalk = (np.abs(across - 0.12 * up) < 0.055) & (up > 0.45) & (distance < outline + 0.28)
    if kind in ("apple", "pear"):
        inside = inside | stalk
        colour[stalk] = (92, 66, 40)
    leaves = (distance < 0.55 + 0.25 * np.cos(7 * angle)) & (up > 0.3)
    if kind == "strawberry":
        colour[leaves & inside] = (70, 135, 55)
    return inside, colour, shadow


def _table(random: np.random.Generator, height: int, width: int) -> Array:
    """Wood, cloth or slate."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    base = np.array([(176, 132, 88), (206, 200, 188), (92, 98, 104), (120, 150, 160)][random.integers(4)], float)
    turn, coarse = random.uniform(0, np.pi), random.uniform(0, 255, (9, 9)).astype(np.uint8)
    clouds = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 255 - 0.5
    along = x * np.cos(turn) + y * np.sin(turn)
    match random.integers(3):
        case 0:
            pattern = 0.5 * np.sin(40 * along + 9 * clouds) * (0.4 + clouds) - (np.abs(along % 0.4) < 0.012)
        case 1:
            across = y * np.cos(turn) - x * np.sin(turn)
            pattern = 0.45 * ((along % 0.16 < 0.05) | (across % 0.16 < 0.05))
        case _:
            pattern = 1.1 * clouds
    table: Array = base * (1 + 0.3 * pattern + 0.2 * clouds)[..., None] + random.normal(0, 4, (height, width, 3))
    return table


def _bump(angle: Array, at: float, width: float) -> Array:
    return np.exp(-(((angle - at) / width) ** 2))


def _ellipse(angle: Array, up: float, across: float) -> Array:
    return 1 / np.sqrt((np.cos(angle) / up) ** 2 + (np.sin(angle) / across) ** 2)


_OUTLINES: dict[str, Callable[[Array], Array]] = {
    # The distance of the edge from the centre, by the angle from the upright: 0 to pi.
    "apple": lambda a: 0.95 - 0.24 * _bump(a, 0, 0.35) - 0.1 * _bump(a, np.pi, 0.4),
    "lemon": lambda a: _ellipse(a, 0.85, 0.62) + 0.14 * _bump(a, 0, 0.18) + 0.1 * _bump(a, np.pi, 0.18),
    "orange": lambda a: np.full_like(a, 0.88),
    "pear": lambda a: 0.52 + 0.38 * (1 - np.cos(a)) / 2 + 0.5 * _bump(a, 0, 0.42),
    "plum": lambda a: _ellipse(a, 0.92, 0.7),
    "strawberry": lambda a: 0.66 + 0.16 * _bump(a, 0.9, 0.6) + 0.3 * _bump(a, np.pi, 0.5),
}
_COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "apple": ((190, 42, 40), (130, 170, 60), (205, 95, 60)),
    "lemon": ((238, 212, 62),),
    "orange": ((236, 136, 36),),
    "pear": ((176, 182, 72), (196, 170, 78)),
    "plum": ((98, 48, 112), (76, 52, 124)),
    "strawberry": ((208, 38, 48),),
}
