"""The arithmetic of a training: 32 bits throughout, or products in bfloat16 with 32-bit weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from luthier.v1.training_pb2 import Precision

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux says what the processor can do; PyTorch's own answer is public in its newest versions only."""

_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
"""What Linux calls them, on x86 and on Arm."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device itself multiplies in bfloat16.

    Where it does not, PyTorch emulates: on a processor with AVX2 alone that took 75 times as long as float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and CPUINFO.exists() and bool(_INSTRUCTIONS & set(CPUINFO.read_text().split()))


def wants_bfloat16(precision: int, device: torch.device) -> bool:
    """Whether a config's `precision`, a value of luthier.v1.Precision, comes to bfloat16 on a device."""
    match precision:
        case Precision.PRECISION_FLOAT32:
            return False
        case Precision.PRECISION_BFLOAT16:
            return True
        case _:
            return has_bfloat16(device)


def autocast(device: torch.device, bfloat16: bool) -> torch.autocast:
    """A context in which matrix products are taken in bfloat16, or one that changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)


@contextmanager
def whole_gradients(module: nn.Module, bfloat16: bool) -> Iterator[None]:
    """Within it, strided convolutions of maps that are hardly wider than the kernel are taken in 32 bits.

    There a part of the kernel may meet the map's padding alone. Its gradient is 0, but oneDNN 3.12, which is in PyTorch
    2.14, does not write it in bfloat16 with the channels last: what was in that memory is added to the weights.
    """
    found = [part for part in module.modules() if isinstance(part, nn.Conv2d) and _strides(part)] if bfloat16 else []
    for part in found:
        part.forward = partial(_forward, part)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part in found:
            del part.forward


def _strides(part: nn.Conv2d) -> bool:
    return max(part.stride) > 1 and max(part.kernel_size) > 1


def _forward(part: nn.Conv2d, maps: torch.Tensor) -> torch.Tensor:
    forward = type(part).forward
    reach = max(part.kernel_size) * max(part.dilation) + max(part.stride)
    if min(maps.shape[-2:]) >= reach:
        return forward(part, maps)
    with torch.autocast(maps.device.type, enabled=False):
        return forward(part, maps.float())
