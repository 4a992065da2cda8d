"""The trainer's process, seen from the worker that starts it: what goes in, what is heard, what comes out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from luthier.task import Task
from luthier.v1 import model_pb2
from luthier.worker.child import run_child
from luthier.worker.job import Job


@dataclass(frozen=True)
class Outcome:
    """What a trainer leaves behind."""

    bundle: Path
    predictions: list[Message]
    figures: dict[str, float]
    packages: dict[str, str]


def train(
    job: Job,
    task: Task,
    config: Message,
    data: Path,
    base: Path | None,
    request: model_pb2.FineTuneRequest,
    instances: Sequence[Message],
) -> Outcome:
    """Runs a trainer to its end. Raises Cancelled, or an error that says how it failed."""
    settings = job.tools.settings
    commission(
        job.directory,
        task,
        config,
        data,
        base,
        request.seed,
        instances,
        settings.checkpoint_s,
        device=settings.train_device,
        warm_start=request.base.startswith("models/"),
    )
    run_child(job, "luthier.worker.trainer", job.directory, "the trainer")
    return collect(job.directory, task)


def commission(
    directory: Path,
    task: Task,
    config: Message,
    data: Path,
    base: Path | None,
    seed: int,
    instances: Sequence[Message],
    checkpoint_s: float,
    *,
    device: str = "cpu",
    warm_start: bool = False,
) -> None:
    """Writes into a folder what a trainer, a child of this process, is to do there."""
    spec = {
        "task": task.id,
        "data": str(data),
        "base": str(base) if base else None,
        "warm_start": warm_start,
        "seed": seed,
        "device": device,
        "checkpoint_s": checkpoint_s,
        "parent": os.getpid(),
    }
    (directory / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    (directory / "config.bin").write_bytes(config.SerializeToString())
    write_messages(directory / "instances.bin", instances)


def collect(directory: Path, task: Task) -> Outcome:
    """Reads what a trainer that ended well left in its folder."""
    outcome = json.loads((directory / "outcome.json").read_text(encoding="utf-8"))
    predictions = read_messages(directory / "predictions.bin", task.methods[0].prediction)
    return Outcome(directory / "bundle", predictions, outcome["figures"], outcome["packages"])


def write_messages(path: Path, messages: Sequence[Message]) -> None:
    """Writes messages of one type, each behind its length in 4 bytes."""
    with path.open("wb") as file:
        for message in messages:
            body = message.SerializeToString()
            file.write(len(body).to_bytes(4, "little"))
            file.write(body)


def read_messages(path: Path, kind: type[Message]) -> list[Message]:
    """Reads what `write_messages` wrote."""
    messages = []
    with path.open("rb") as file:
        while head := file.read(4):
            messages.append(kind.FromString(file.read(int.from_bytes(head, "little"))))
    return messages
