"""Groups of parameters, and the schedule of their learning rates."""

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def decay_matrices(module: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Returns two parameter groups for AdamW: matrices, which decay, and biases and scales, which do not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "lr": learning_rate, "weight_decay": 0.0},
    ]


def warm_up_then_decay(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float, decay: Literal["linear", "cosine"] = "linear"
) -> LambdaLR:
    """Raises the learning rates linearly over the share `warmup` of the steps, then lowers them to 0.

    They fall along a line, or along half a cosine. The first step already moves, and the last one still does.
    """
    rising = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        left = min(1.0, (steps - step) / max(1, steps - rising))
        falling = left if decay == "linear" else (1 - math.cos(math.pi * left)) / 2
        return min((step + 1) / rising, falling)

    return LambdaLR(optimizer, factor)
