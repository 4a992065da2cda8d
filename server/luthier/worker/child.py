"""A process that imports a training framework, seen from the worker that starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from google.rpc import status_pb2

from luthier.errors import LuthierError, Unavailable
from luthier.worker.job import Job

GRACE_S = 4.0
"""Seconds that a child gets to stop by itself after a cancellation."""

PAUSE_GRACE_S = 30.0
"""Seconds that it gets to save where it stands."""

WISHES = {"cancel": (signal.SIGTERM, GRACE_S), "pause": (signal.SIGUSR1, PAUSE_GRACE_S)}
"""How a child hears of what someone asked for, and how long it gets."""

ENVIRONMENT = {"GOMP_SPINCOUNT": "100000", "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""What a child's environment says where the worker's own does not. OpenMP's threads spin a third as long before
they sleep: what they wait for cannot run meanwhile where a neighbour is busy. And the C library keeps up to 1 GiB
of what was freed, instead of asking for cleared pages in each step: that saved most of the time in the system."""


class ChildFailed(LuthierError):
    """The child ended with an error, which this one passes on."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self._status = status

    def status(self) -> status_pb2.Status:
        """The child's own status."""
        return self._status


class ChildKilled(Exception):
    """The child was killed from outside: another attempt goes on where it stood."""


def run_child(job: Job, module: str, directory: Path, name: str) -> None:
    """Runs a module with a folder to read and write, and a pipe on which it says events, to its end.

    `name` is what to call it. Raises Cancelled, Paused, ChildKilled, the error that it left in `error.bin`,
    or one that says how it ended.
    """
    code = _run(job, module, directory)
    job.check()
    if (directory / "error.bin").exists():
        raise ChildFailed(status_pb2.Status.FromString((directory / "error.bin").read_bytes()))
    if code == -signal.SIGKILL:
        raise ChildKilled(f"{name} was killed")
    if code:
        raise Unavailable(f"{name} ended by {signal.Signals(-code).name if code < 0 else f'exit status {code}'}")


def _run(job: Job, module: str, directory: Path) -> int:
    """Starts the child, passes on what it says, ends it on a cancellation or pause; returns its exit status."""
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(directory), str(write_end)],
        pass_fds=[write_end],
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT | os.environ,
    )
    os.close(write_end)
    listener = threading.Thread(target=_listen, args=(job, read_end), daemon=True)
    listener.start()
    wish, deadline = "", 0.0
    while True:
        try:
            code = process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if job.wish != wish:
                wish = job.wish
                sign, grace = WISHES[wish]
                process.send_signal(sign)
                deadline = time.monotonic() + grace
            elif wish and time.monotonic() > deadline:
                process.kill()
        else:
            listener.join()
            return code


def _listen(job: Job, pipe: int) -> None:
    with os.fdopen(pipe, encoding="utf-8") as lines:
        for line in lines:
            job.emit(json.loads(line))
