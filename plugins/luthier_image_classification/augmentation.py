"""Random changes to training images, drawn anew for each image each time: crops, mirrors, colours."""

from __future__ import annotations

import torch
from torchvision.transforms import v2

LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in the brightness that people see (ITU-R BT.601)."""


class Augmentation:
    """Makes a model's inputs of images that were resized to somewhat more. Draws from torch's global generator."""

    def __init__(self, size: tuple[int, int], min_crop: float, *, flip: bool, colour_jitter: float) -> None:
        """`size` is (height, width); the rest is as in the task's config."""
        self._crop = v2.RandomResizedCrop(size, scale=(min_crop, 1.0))
        self._flip = flip
        self._jitter = colour_jitter

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [batch, h, w, 3] to uint8 [batch, height, width, 3]."""
        # A transform draws once for all that it is given. Channels last in memory is what it resizes fastest.
        crops = torch.stack([self._crop(image) for image in images.permute(0, 3, 1, 2)])
        if self._flip:
            mirrored = torch.rand(len(crops)) < 0.5
            crops[mirrored] = crops[mirrored].flip(-1)
        if self._jitter:
            crops = _jitter(crops, *self._factors(len(crops)))
        return crops.permute(0, 2, 3, 1)

    def _factors(self, count: int) -> torch.Tensor:
        """Of brightness, contrast and saturation: [3, count]."""
        return 1 + self._jitter * (2 * torch.rand(3, count) - 1)


def _jitter(
    images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
) -> torch.Tensor:
    """uint8 [batch, 3, height, width] with each image's colours changed by its own factors, each [batch].

    It is what `v2.functional` does by adjust_saturation, adjust_brightness and adjust_contrast in turn, but for
    rounding in between; they take one factor for a whole batch, and image by image they cost ten times as much.
    """
    device = images.device
    luma = torch.tensor(LUMA, device=device)
    brightness, contrast, saturation = (f.to(device)[:, None, None] for f in (brightness, contrast, saturation))
    mix = brightness * (saturation * torch.eye(3, device=device) + (1 - saturation) * luma)
    mixed = torch.einsum("bij,bjhw->bihw", contrast * mix, images.float())
    # Saturation leaves the brightness as it is.
    grey = brightness[:, 0, 0] * (images.float().mean((2, 3)) @ luma)
    return (mixed + ((1 - contrast[:, 0, 0]) * grey)[:, None, None, None]).round_().clamp_(0, 255).to(torch.uint8)
