"""Random changes to training images and their boxes: zooming out, crops that keep objects, mirrors.

These are SSD's (Liu et al., 2016), as torchvision has them; from few images they make many.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

FARTHEST = 2.0
"""How many times wider and higher the canvas may be that an image is put on."""
SMALLEST = 2.0
"""Pixels of the model's input that a box must have left on each side to be an object still."""


class Augmentation:
    """Makes a model's inputs of images that were resized to somewhat more. Draws from torch's global generator."""

    def __init__(self, size: tuple[int, int], mean: Sequence[float]) -> None:
        """`size` is (height, width); `mean` is the colour, of values between 0 and 1, around an image zoomed out of."""
        fill = [round(value * 255) for value in mean]
        self._zoom_out = v2.RandomZoomOut(fill=fill, side_range=(1.0, FARTHEST), p=0.5)
        self._crop = v2.RandomIoUCrop()
        self._flip = v2.RandomHorizontalFlip()
        self._resize = v2.Resize(size)
        self._drop_small = v2.SanitizeBoundingBoxes(min_size=SMALLEST)

    def __call__(
        self, image: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """An image, uint8 [h, w, 3], with boxes, float32 [objects, 4] in its pixels, and labels, int64 [objects].

        Returns uint8 [height, width, 3], and the boxes in its pixels and labels of the objects that are still there.
        """
        height, width = image.shape[:2]
        sample = (
            tv_tensors.Image(image.permute(2, 0, 1)),
            {"boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)), "labels": labels},
        )
        sample = self._zoom_out(sample)
        if len(boxes):
            sample = self._crop(sample)
        pixels, target = self._drop_small(self._resize(self._flip(sample)))
        found = {"boxes": target["boxes"].as_subclass(torch.Tensor), "labels": target["labels"]}
        return pixels.as_subclass(torch.Tensor).permute(1, 2, 0), found
