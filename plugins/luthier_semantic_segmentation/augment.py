"""Random views of training images and their masks: zoomed, moved, turned a little, mirrored, in other light."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

IGNORED = -1
"""The target of pixels that count for nothing."""
STRETCH = 1.2
"""Most by which a view's width and height are scaled apart."""
TURN = math.radians(10)
LIGHT = 0.3
"""Most by which brightness, contrast and saturation change."""
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in how bright a colour looks, by ITU-R BT.601."""


def views(
    pixels: torch.Tensor,
    classes: torch.Tensor,
    size: tuple[int, int],
    fill: torch.Tensor,
    zoom: float,
    random: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one view of each image; returns float pixels [batch, *size, 3] and int64 targets [batch, *size].

    `pixels` are uint8 [batch, height, width, 3], `classes` uint8 [batch, height, width] with 255 for IGNORED. `fill`,
    float [3], is the colour of what lies outside the image, where the target is IGNORED.
    """
    batch = len(pixels)
    grid = functional.affine_grid(_placement(batch, zoom, random).to(pixels.device), [batch, 1, *size], False)
    lit = _relit(pixels.float(), random) - fill
    seen = functional.grid_sample(lit.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
    # Outside the sampler gives 0: there IGNORED is 0, and the classes begin at 1.
    numbers = (classes.int() + 1) % 256
    targets = functional.grid_sample(numbers[:, None].float(), grid, mode="nearest", align_corners=False)
    return seen.permute(0, 2, 3, 1) + fill, targets[:, 0].long() + IGNORED


def _placement(batch: int, zoom: float, random: np.random.Generator) -> torch.Tensor:
    """Where each view lies: affine maps [batch, 2, 3] from its coordinates to the image's, both from -1 to 1."""
    size = 1 / zoom ** random.uniform(-1, 1, batch)
    stretch = STRETCH ** random.uniform(-0.5, 0.5, batch)
    across, down = size * stretch, size / stretch
    mirrored = random.choice([-1.0, 1.0], batch)
    angle = random.uniform(-TURN, TURN, batch)
    x, y = (np.abs(1 - side) * random.uniform(-1, 1, batch) for side in (across, down))
    rows = [
        [across * mirrored * np.cos(angle), -down * np.sin(angle), x],
        [across * mirrored * np.sin(angle), down * np.cos(angle), y],
    ]
    return torch.tensor(np.array(rows), dtype=torch.float32).permute(2, 0, 1)


def _relit(pixels: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Pixels, float from 0 to 255, with random saturation, contrast and brightness of each image."""
    saturation, contrast, brightness = (
        torch.tensor(random.uniform(1 - LIGHT, 1 + LIGHT, (len(pixels), 1, 1, 1)), dtype=torch.float32).to(
            pixels.device
        )
        for _ in range(3)
    )
    grey = (pixels @ torch.tensor(_LUMA, device=pixels.device))[..., None]
    level = grey.mean((1, 2), keepdim=True)
    relit = grey + saturation * (pixels - grey)
    return ((level + contrast * (relit - level)) * brightness).clamp(0, 255)
