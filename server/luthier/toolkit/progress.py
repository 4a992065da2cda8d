"""Telling a run how far it is, often enough to watch and to cancel, and no oftener."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from luthier.errors import FailedPrecondition
from luthier.task import Run

INTERVAL_S = 0.2
"""The least time between two reports: 5 a second cost nothing that can be measured."""


class Progress:
    """Steps done of a training. Every method raises Cancelled where the operation was cancelled."""

    def __init__(self, run: Run, total: int) -> None:
        self.step = 0
        self.examples = 0
        self._run = run
        self._total = total
        self._losses: list[torch.Tensor] = []
        self._started = self._reported = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has taken so far, without what was lost between two attempts."""
        return time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and since when."""
        return {"step": self.step, "examples": self.examples, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Goes on counting from there."""
        self.step, self.examples = state_dict["step"], state_dict["examples"]
        self._started = time.monotonic() - state_dict["seconds"]

    def advance(self, examples: int, loss: torch.Tensor) -> None:
        """Counts one optimiser step; from time to time reports the mean loss since the last report.

        Raises FailedPrecondition where that is no longer a number.
        """
        self.step += 1
        self.examples += examples
        self._losses.append(loss.detach())
        if self.step == self._total or self._is_due():
            mean = torch.stack(self._losses).mean().item()
            if not math.isfinite(mean):
                raise FailedPrecondition(
                    f"the loss is {mean} after step {self.step}: the training diverged; lower the learning rate"
                )
            self.report({"loss": mean})
            self._losses.clear()

    def beat(self) -> None:
        """Is called between steps, where one takes long: only looks for a cancellation, from time to time."""
        if self._is_due():
            self.report({})

    def report(self, metrics: Mapping[str, float]) -> None:
        """Reports now, with what was measured."""
        self._reported = time.monotonic()
        self._run.report(self.step, self._total, stage="training", examples=self.examples, **metrics)

    def _is_due(self) -> bool:
        return time.monotonic() - self._reported >= INTERVAL_S
