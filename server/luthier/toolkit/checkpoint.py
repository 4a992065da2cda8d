"""What of a training is kept in files: the weights of the best epoch, and where it stands, to go on from there."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import nn

LEAST_SHARE = 30
"""A training computes at least so many times as long as it saves."""


class Stateful(Protocol):
    """What gives its state away and takes it back, as PyTorch's modules, optimisers and schedules do."""

    def state_dict(self) -> dict[str, Any]:
        """The state: tensors, numbers, texts, and lists and dictionaries of them."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Takes a state over."""


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

    def state_dict(self) -> dict[str, Any]:
        """All but the file. That may hold the weights of a later epoch, which going on from here computes again."""
        return {"epoch": self.epoch, "best": self._best, "best_epoch": self._best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Takes the state over."""
        self.epoch, self._best, self._best_epoch = (state_dict[name] for name in ("epoch", "best", "best_epoch"))


class SavedState:
    """Where a training stands, in a file of the run's folder that is seen whole or not at all.

    To the parts that it is given it adds the states of all generators of random numbers, and the rest of the epoch.
    """

    def __init__(
        self, directory: Path, interval_s: float, parts: Mapping[str, Stateful], random: np.random.Generator
    ) -> None:
        """`interval_s` is the least time between two saves; `random` is what the batches are drawn with."""
        self._file = directory / "state.pt"
        self._interval_s = interval_s
        self._parts = parts
        self._random = random
        self._due = time.monotonic() + interval_s

    def is_due(self) -> bool:
        """Whether the interval is over."""
        return time.monotonic() >= self._due

    def save(self, epoch: int, rest: list[np.ndarray]) -> None:
        """Saves the state before the first of the batches that are left of an epoch."""
        started = time.monotonic()
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts.items()}
        state["random"] = self._random.bit_generator.state
        state["torch"] = torch.get_rng_state()
        state["cuda"] = torch.cuda.get_rng_state_all()
        state["epoch"], state["rest"] = epoch, [torch.from_numpy(indices) for indices in rest]
        partial = self._file.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._file)
        ended = time.monotonic()
        self._due = ended + max(self._interval_s, LEAST_SHARE * (ended - started))

    def load(self) -> tuple[int, list[np.ndarray]] | None:
        """Takes over what an earlier attempt saved; returns the epoch and its rest, None where nothing was saved."""
        if not self._file.exists():
            return None
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._random.bit_generator.state = state["random"]
        torch.set_rng_state(state["torch"])
        torch.cuda.set_rng_state_all(state["cuda"])
        return state["epoch"], [indices.numpy() for indices in state["rest"]]
