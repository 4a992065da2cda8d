"""Where a training computes."""

import torch

from luthier.errors import FailedPrecondition
from luthier.task import Run


def device_of(run: Run) -> torch.device:
    """The device of a run; raises FailedPrecondition where torch cannot use it."""
    device = torch.device(run.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FailedPrecondition(
            f"torch finds {torch.cuda.device_count()} CUDA devices here and is to train on {run.device}; "
            "see to the driver, or start this server or worker with another --train-device"
        )
    return device
