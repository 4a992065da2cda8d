"""The arithmetic of a training: 32 bits throughout, or products in bfloat16 with 32-bit weights."""

from pathlib import Path

import torch

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
