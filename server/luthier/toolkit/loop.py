"""The loop that all fine-tunes in PyTorch share: steps of AdamW, validation after each epoch, the checkpoint to keep.

What differs between tasks comes in as functions: which examples make a batch, what its loss is, how good the model is.
From time to time the loop saves where it stands. An attempt that finds what an earlier one saved goes on from there, to
the same weights bit by bit where the sums are taken in the same order, as on one thread.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from luthier.task import Run, Stopped
from luthier.toolkit.checkpoint import BestCheckpoint, SavedState, Stateful
from luthier.toolkit.devices import device_of
from luthier.toolkit.optim import warm_up_then_decay
from luthier.toolkit.precision import autocast, whole_gradients
from luthier.toolkit.progress import Progress

Beat = Callable[[], None]
"""To be called often in work that takes long between steps, so that it can be cancelled."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long to train, and how fast."""

    epochs: int
    batch_size: int
    warmup: float
    """Share of the steps over which the learning rates rise."""
    decay: Literal["linear", "cosine"] = "linear"
    """How they fall to 0 afterwards."""
    patience: int = 0
    """Epochs without a better score after which to stop; 0: never."""
    bfloat16: bool = False
    max_gradient_norm: float = 1.0


@dataclass(frozen=True)
class Validation:
    """What a model is worth on the validation part."""

    score: float
    """What checkpoints are chosen by; higher is better."""
    error: float
    """The standard error of a difference between two such scores; by less, two epochs cannot be told apart."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What to report, each under its own name."""


def fit(
    run: Run,
    module: nn.Module,
    groups: Sequence[dict[str, Any]],
    recipe: Recipe,
    num_examples: int,
    batches: Callable[[], Iterator[np.ndarray]],
    loss: Callable[[np.ndarray], torch.Tensor],
    validate: Callable[[Beat], Validation] | None,
    random: np.random.Generator,
) -> None:
    """Trains a module in place, and leaves it in evaluation mode with the weights of the checkpoint that is kept.

    `groups` are AdamW's parameter groups. `batches` gives one epoch's batches, ceil(num_examples / batch_size) arrays
    of the indices of examples; `loss` computes the mean loss of one, within autocast where the recipe is in bfloat16.
    `random` is the generator that both draw from, if they do. Where there is nothing to validate on, every epoch is
    trained and the last weights are kept. Figures of the training go to `run.figures`. Raises Cancelled, Stopped,
    and FailedPrecondition where the loss is no longer a number.
    """
    device = device_of(run)
    steps = recipe.epochs * math.ceil(num_examples / recipe.batch_size)
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = warm_up_then_decay(optimizer, steps, recipe.warmup, recipe.decay)
    checkpoint = BestCheckpoint(module, run.directory, recipe.patience)
    progress = Progress(run, steps)
    parts: dict[str, Stateful] = {
        "module": module,
        "optimizer": optimizer,
        "schedule": schedule,
        "checkpoint": checkpoint,
        "progress": progress,
    }
    state = SavedState(run.directory, run.checkpoint_s, parts, random)

    def judged(validate: Callable[[Beat], Validation]) -> Validation:
        module.eval()
        with torch.inference_mode(), autocast(device, recipe.bfloat16):
            validation = validate(progress.beat)
        progress.report(validation.metrics)
        return validation

    epoch = 0
    first, rest = state.load() or (1, [])
    if progress.step:
        run.emit({"message": f"goes on after step {progress.step} of {steps}"})
    progress.report({})
    if validate is not None and not recipe.epochs:
        judged(validate)
    with whole_gradients(module, recipe.bfloat16):
        for epoch in range(first, recipe.epochs + 1):
            module.train()
            order, rest = rest or list(batches()), []
            for done, indices in enumerate(order):
                paused = run.paused()
                if paused or state.is_due():
                    state.save(epoch, order[done:])
                    run.emit({"checkpoint": {"step": progress.step}})
                if paused:
                    raise Stopped
                with autocast(device, recipe.bfloat16):
                    step_loss = loss(indices)
                optimizer.zero_grad()
                step_loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped.
                nn.utils.clip_grad_norm_(module.parameters(), recipe.max_gradient_norm)
                optimizer.step()
                schedule.step()
                progress.advance(len(indices), step_loss)
            if validate is not None:
                validation = judged(validate)
                if not checkpoint.update(epoch, validation.score, validation.error):
                    break

    if checkpoint.epoch:
        checkpoint.restore()
    module.eval()
    seconds = progress.seconds
    run.figures |= {
        "training_s": seconds,
        "examples_per_s": progress.examples / seconds,
        "epochs_run": epoch,
        "best_epoch": checkpoint.epoch or epoch,
        "steps": progress.step,
        "threads": torch.get_num_threads(),
    }


def share_error(share: float, count: int) -> float:
    """The standard error of a difference between two shares of `count` examples: sqrt(2 p (1 - p) / count)."""
    return math.sqrt(2 * share * (1 - share) / count)
