"""Keeping the weights of the best epoch, and stopping when no better one comes."""

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
        self._score: tuple[float, ...] = ()

    def update(self, epoch: int, score: tuple[float, ...]) -> bool:
        """Keeps the weights if the score is the best yet; returns whether training should go on.

        Scores are compared from left to right, so that later entries settle ties; higher is better.
        """
        if score > self._score:
            self.epoch, self._score = epoch, score
            save_model(self._module, str(self._file))
        return not self._patience or epoch - self.epoch < self._patience

    def restore(self) -> None:
        """Gives the module its best weights back."""
        load_model(self._module, self._file)
