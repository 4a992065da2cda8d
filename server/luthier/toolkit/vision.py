"""Images for training: decoded and resized once into a file that all epochs read, and normalised inside the model."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from luthier import images

Beat = Callable[[], None]


class Normalise(nn.Module):
    """The first layer of a vision model: uint8 [batch, height, width, 3] to float [batch, 3, height, width].

    It is exported with the model, so that a served model takes the bytes of an image as they are.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std` of each channel, of values between 0 and 1."""
        super().__init__()
        means, deviations = (255 * torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", 1 / deviations, persistent=False)
        self.register_buffer("shift", -means / deviations, persistent=False)

    @property
    def mean(self) -> torch.Tensor:
        """The pixel that becomes 0: float [3], of values between 0 and 255."""
        return (-self.shift / self.scale).flatten()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised, channels first; laid out in memory as the pixels were, which convolutions like best.

        A number for each channel goes over whole rows where channels come first: in onnxruntime 4 times as fast as
        over pixels of three values.
        """
        return pixels.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift


def cache_images(encoded: Iterable[bytes], count: int, size: tuple[int, int], path: Path, beat: Beat) -> np.ndarray:
    """Decodes and resizes images once, to a file; returns it as uint8 [count, height, width, 3], mapped to memory.

    `size` is (height, width); `beat` is called after each. Raises images.ImageError, which a data set's validation has
    ruled out.
    """
    if not count:
        return np.zeros((0, *size, 3), dtype=np.uint8)
    cache = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, *size, 3))
    # Pillow decodes and resizes outside the interpreter's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for index, image in enumerate(pool.map(lambda data: images.decode_to(data, *size), encoded)):
            cache[index] = image
            beat()
    return cache


def shuffled_batches(count: int, batch_size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """The indices of one epoch's batches in random order: ceil(count / batch_size) arrays, as equal as can be.

    A last batch of what is left over could be of one image, whose statistics would move those of batch normalisation.
    """
    return iter(np.array_split(random.permutation(count), math.ceil(count / batch_size)))


def input_size(config: int, base: Sequence[int], *, multiple: int = 32) -> tuple[int, int]:
    """(height, width) of a model's input: a square of the config's side, or the base's own where that is 0.

    Sides are rounded up to a multiple, which the strides of a backbone need.
    """
    height, width = (config, config) if config else (base[0], base[1])
    return math.ceil(height / multiple) * multiple, math.ceil(width / multiple) * multiple
