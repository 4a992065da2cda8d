"""Keeping the weights of the best epoch, and stopping when no better one comes."""

import math
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn


class BestCheckpoint:
    """The best weights of a module so far, in a file of the run's folder."""

    def __init__(self, module: nn.Module, directory: Path, patience: int) -> None:
        """`patience` is the number of epochs without a better score after which to stop; 0: never."""
        self.epoch = 0
        """The epoch whose weights are kept; 0 before the first."""
        self._module = module
        self._file = directory / "best.safetensors"
        self._patience = patience
        self._best, self._best_epoch = -math.inf, 0

    def update(self, epoch: int, score: float, error: float) -> bool:
        """Keeps the weights unless the score is clearly below the best yet; returns whether training should go on.

        Higher is better. Clearly is by more than `error`, the standard error of a difference between two scores: of
        epochs that the validation part is too small to tell apart the last is taken, which has learnt most.
        """
        if score >= self._best - error:
            self.epoch = epoch
            save_model(self._module, str(self._file))
        if score > self._best:
            self._best, self._best_epoch = score, epoch
        return not self._patience or epoch - self._best_epoch < self._patience

    def restore(self) -> None:
        """Gives the module its best weights back."""
        load_model(self._module, self._file)
