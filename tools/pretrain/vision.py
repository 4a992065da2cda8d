"""Pretrains Luthier's own small vision base on images that it draws itself.

    python tools/pretrain/vision.py OUTPUT [--images 8000] [--epochs 10]

Each image shows one shape among smaller ones on a noisy ground; the model learns to name its shape, its texture and its
colour. That teaches what any picture needs first: edges, corners, fills and hues at every size. OUTPUT gets the weights
of the backbone in float16. Two cores take about ten minutes; the same versions and threads give the same bytes.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

ARCHITECTURE = "mobilenetv2_050"
SIZE = 64
SEED = 0
SHAPES = (
    *("disc", "ellipse", "triangle", "square", "oblong", "pentagon", "hexagon"),
    *("star", "sun", "ring", "crescent", "cross", "arrow", "angle"),
)
TEXTURES = ("plain", "stripes", "checks", "dots", "gradient", "grain")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "violet", "magenta", "white", "black")
HEADS = (len(SHAPES), len(TEXTURES), len(COLOURS))

Points = list[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool() as pool:
        drawn = pool.map(drawing, range(arguments.images), chunksize=500)
    images = torch.from_numpy(np.stack([image for image, _ in drawn]))
    labels = torch.tensor([labels for _, labels in drawn])
    print(f"{len(images)} images drawn in {time.monotonic() - started:.0f} s")
    backbone = pretrain(images, labels, arguments.epochs)
    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in backbone.items()
    }
    save_file(state, arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes after {time.monotonic() - started:.0f} s")


def pretrain(images: torch.Tensor, labels: torch.Tensor, epochs: int, batch_size: int = 32) -> dict[str, torch.Tensor]:
    """Trains on all but the last tenth, says what is right of that, and returns the backbone's weights."""
    torch.manual_seed(SEED)
    backbone = timm.create_model(ARCHITECTURE, num_classes=0)
    model = nn.Sequential(backbone, nn.Dropout(0.1), nn.Linear(backbone.num_features, sum(HEADS)))
    model = model.to(memory_format=torch.channels_last)
    held_out = len(images) // 10
    train = len(images) - held_out
    steps = epochs * (train // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(train)
        for start in range(0, train - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            loss = sum(
                functional.cross_entropy(logits, labels[chosen, i]) for i, logits in heads(model, images[chosen])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        right = torch.zeros(len(HEADS))
        with torch.inference_mode():
            for start in range(train, len(images), 256):
                for i, logits in heads(model, images[start : start + 256]):
                    right[i] += (logits.argmax(1) == labels[start : start + 256, i]).sum()
        shape, texture, colour = (right / held_out).tolist()
        print(
            f"epoch {epoch + 1}: loss {loss.item():.3f}  shape {shape:.3f}  texture {texture:.3f}  colour {colour:.3f}"
        )
    return dict(backbone.state_dict())


def heads(model: nn.Module, images: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """The logits of shape, texture and colour, numbered, of uint8 images [batch, height, width, 3]."""
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    return list(enumerate(model(pixels).split(HEADS, dim=1)))


def drawing(seed: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """One image, uint8 [SIZE, SIZE, 3], and the numbers of its shape, texture and colour."""
    random = np.random.default_rng([SEED, seed])
    canvas = ground(random)
    for _ in range(random.integers(0, 4)):
        canvas = laid_on(canvas, random, random.uniform(0.05, 0.12))[0]
    image, labels = laid_on(canvas, random, random.uniform(0.18, 0.46))
    image = image + random.normal(0, random.uniform(0, 14), image.shape)
    if random.random() < 0.3:
        image = np.asarray(Image.fromarray(clipped(image)).resize((SIZE // 2, SIZE // 2)).resize((SIZE, SIZE)))
    return clipped(image), labels


def laid_on(canvas: np.ndarray, random: np.random.Generator, radius: float) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A shape of a random kind over the canvas, and the numbers of its shape, texture and colour."""
    shape, texture, colour = (int(random.integers(count)) for count in HEADS)
    margin = min(0.5, radius * 0.9)
    centre = random.uniform(margin, 1 - margin, 2) * SIZE
    mask = stencil(SHAPES[shape], centre, radius * SIZE, random.uniform(0, 2 * math.pi), random)[..., None]
    return canvas * (1 - mask) + fill(TEXTURES[texture], hue(COLOURS[colour], random), random) * mask, (
        shape,
        texture,
        colour,
    )


def ground(random: np.random.Generator) -> np.ndarray:
    """What lies behind: a texture of any kind in muted colours."""
    colour = random.uniform(40, 215) + random.uniform(-30, 30, 3)
    return fill(TEXTURES[random.integers(len(TEXTURES))], colour, random, contrast=0.5)


def fill(texture: str, colour: np.ndarray, random: np.random.Generator, contrast: float = 1.0) -> np.ndarray:
    """A texture that covers the whole canvas, float [SIZE, SIZE, 3]."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    angle, period = random.uniform(0, math.pi), random.uniform(0.06, 0.16)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    match texture:
        case "plain":
            pattern = np.zeros((SIZE, SIZE))
        case "stripes":
            pattern = (along / period % 1 < 0.5).astype(float)
        case "checks":
            pattern = ((along / period % 1 < 0.5) ^ (across / period % 1 < 0.5)).astype(float)
        case "dots":
            pattern = ((along / period % 1 - 0.5) ** 2 + (across / period % 1 - 0.5) ** 2 < 0.09).astype(float)
        case "gradient":
            pattern = (along - along.min()) / np.ptp(along)
        case _:
            coarse = random.uniform(0, 255, (SIZE // 4, SIZE // 4)).astype(np.uint8)
            pattern = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.NEAREST)) / 255
    toward = 30.0 if colour.mean() > 128 else 225.0
    other = colour + (toward - colour) * contrast * random.uniform(0.45, 0.8)
    return colour + (other - colour) * pattern[..., None]


def hue(name: str, random: np.random.Generator) -> np.ndarray:
    """A colour of that name, RGB from 0 to 255, never quite the same."""
    if name in ("white", "black"):
        return np.full(3, 238.0 if name == "white" else 22.0) + random.uniform(-14, 14, 3)
    turn = (COLOURS.index(name) * 45 + random.uniform(-14, 14)) % 360
    saturation, value = random.uniform(0.65, 1), random.uniform(0.6, 1)
    # HSV to RGB, as https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative has it.
    k = (np.array([5, 3, 1]) + turn / 60) % 6
    return 255 * (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


def stencil(
    shape: str, centre: np.ndarray, radius: float, turn: float, random: np.random.Generator, scale: int = 3
) -> np.ndarray:
    """Where a shape is, float [SIZE, SIZE] from 0 to 1, with soft edges."""
    image = Image.new("L", (SIZE * scale, SIZE * scale))
    draw = ImageDraw.Draw(image)

    def place(points: Points) -> Points:
        cos, sin = math.cos(turn) * radius * scale, math.sin(turn) * radius * scale
        left, top = centre * scale
        return [(left + x * cos - y * sin, top + x * sin + y * cos) for x, y in points]

    draw.polygon(place(outline(shape, random)), fill=255)
    if shape == "ring":
        draw.polygon(place([(x * 0.55, y * 0.55) for x, y in regular(40)]), fill=0)
    if shape == "crescent":
        draw.polygon(place([(x * 0.85 + 0.45, y * 0.85) for x, y in regular(40)]), fill=0)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)) / 255


def outline(shape: str, random: np.random.Generator) -> Points:
    """A shape's corners around the origin, within a distance of about 1."""
    match shape:
        case "disc" | "ring" | "crescent":
            return regular(40)
        case "ellipse":
            return [(x, y * 0.5) for x, y in regular(40)]
        case "triangle":
            return regular(3)
        case "square":
            return regular(4)
        case "oblong":
            return [(-1, -0.4), (1, -0.4), (1, 0.4), (-1, 0.4)]
        case "pentagon":
            return regular(5)
        case "hexagon":
            return regular(6)
        case "star":
            return spiked(5, 0.42)
        case "sun":
            return spiked(int(random.integers(9, 14)), 0.7)
        case "cross":
            arm = 0.3
            corner = [(arm, 1.0), (arm, arm), (1.0, arm)]
            quarters = [
                corner,
                [(y, -x) for x, y in corner],
                [(-x, -y) for x, y in corner],
                [(-y, x) for x, y in corner],
            ]
            return [point for quarter in quarters for point in quarter]
        case "arrow":
            return [(1, 0), (0.2, 0.8), (0.2, 0.3), (-1, 0.3), (-1, -0.3), (0.2, -0.3), (0.2, -0.8)]
        case _:
            return [(-0.8, -1), (-0.25, -1), (-0.25, 0.45), (0.9, 0.45), (0.9, 1), (-0.8, 1)]


def regular(corners: int) -> Points:
    """A regular polygon."""
    return [(math.cos(2 * math.pi * i / corners), math.sin(2 * math.pi * i / corners)) for i in range(corners)]


def spiked(spikes: int, inner: float) -> Points:
    """A star."""
    radii = (1.0, inner)
    return [
        (radii[i % 2] * math.cos(math.pi * i / spikes), radii[i % 2] * math.sin(math.pi * i / spikes))
        for i in range(2 * spikes)
    ]


def clipped(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
