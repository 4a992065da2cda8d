"""The trainer's process, seen from the worker that starts it: what goes in, what is heard, what comes out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message
from google.rpc import status_pb2

from luthier.errors import LuthierError, OutOfMemory, Unavailable
from luthier.task import Task
from luthier.v1 import model_pb2
from luthier.worker.job import Job

GRACE_S = 4.0
"""Seconds that a trainer gets to stop by itself after a cancellation."""


SHORT_SPIN = {"GOMP_SPINCOUNT": "10000"}
"""How long OpenMP's threads spin before they sleep. By default it is 30 times as long, and then a training whose core
is taken by a prediction for a moment mostly waits: with one busy neighbour on two cores it ran 1.7 times as fast."""


@dataclass(frozen=True)
class Outcome:
    """What a trainer leaves behind."""

    bundle: Path
    predictions: list[Message]
    figures: dict[str, float]
    packages: dict[str, str]


class TrainerFailed(LuthierError):
    """The trainer ended with an error, which this one passes on."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self._status = status

    def status(self) -> status_pb2.Status:
        """The trainer's own status."""
        return self._status


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
    directory = job.directory
    spec = {
        "task": task.id,
        "data": str(data),
        "base": str(base) if base else None,
        "warm_start": request.base.startswith("models/"),
        "seed": request.seed,
        "parent": os.getpid(),
    }
    (directory / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    (directory / "config.bin").write_bytes(config.SerializeToString())
    write_messages(directory / "instances.bin", instances)

    code = _run(job, directory)
    job.check()
    if (directory / "error.bin").exists():
        raise TrainerFailed(status_pb2.Status.FromString((directory / "error.bin").read_bytes()))
    if code == -signal.SIGKILL:
        raise OutOfMemory("the trainer was killed, most likely by the kernel for want of memory; try a smaller batch")
    if code:
        raise Unavailable(f"the trainer ended by {signal.Signals(-code).name if code < 0 else f'exit status {code}'}")
    outcome = json.loads((directory / "outcome.json").read_text(encoding="utf-8"))
    predictions = read_messages(directory / "predictions.bin", task.methods[0].prediction)
    return Outcome(directory / "bundle", predictions, outcome["figures"], outcome["packages"])


def _run(job: Job, directory: Path) -> int:
    """Starts the trainer, passes on what it says, ends it on cancellation; returns its exit status."""
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier.worker.trainer", str(directory), str(write_end)],
        pass_fds=[write_end],
        stdin=subprocess.DEVNULL,
        env=SHORT_SPIN | os.environ,
    )
    os.close(write_end)
    listener = threading.Thread(target=_listen, args=(job, read_end), daemon=True)
    listener.start()
    grace = 0.0
    while True:
        try:
            code = process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if job.cancelled and not grace:
                process.send_signal(signal.SIGTERM)
            if job.cancelled and (grace := grace + 0.2) > GRACE_S:
                process.kill()
        else:
            listener.join()
            return code


def _listen(job: Job, pipe: int) -> None:
    with os.fdopen(pipe, encoding="utf-8") as lines:
        for line in lines:
            job.emit(json.loads(line))


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
