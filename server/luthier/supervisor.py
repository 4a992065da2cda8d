"""Starts a worker process for each operation that this server takes up, and sees to those that die."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from luthier.operations import Claim, Kind, Operations
from luthier.settings import Settings
from luthier.store import Store
from luthier.v1.operation_pb2 import OperationMetadata

log = structlog.get_logger()

_LOOK_S = 0.2


@dataclass
class Lane:
    """Operations that share a number of places, so that a long training holds up no small job."""

    kinds: tuple[Kind, ...]
    places: int


class Supervisor:
    """Claims operations while there are free places, on a thread of its own."""

    def __init__(self, settings: Settings, operations: Operations, store: Store) -> None:
        self._settings = settings
        self._operations = operations
        self._store = store
        small = (
            OperationMetadata.KIND_CREATE_DATASET,
            OperationMetadata.KIND_EVALUATE,
            OperationMetadata.KIND_PULL_BASE,
            OperationMetadata.KIND_IMPORT_BASE,
            OperationMetadata.KIND_BATCH_PREDICT,
        )
        trainings = (OperationMetadata.KIND_FINE_TUNE, OperationMetadata.KIND_FINE_TUNE_FROM_FEEDBACK)
        self._lanes = [
            Lane(trainings, settings.trainings),
            Lane(small, settings.jobs),
        ]
        self._running: dict[Claim, subprocess.Popen[bytes]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Begins to take up operations, once what ended ones left behind is gone."""
        self._store.clear(self._operations.open)
        self._thread.start()

    def stop(self) -> None:
        """Ends all workers; their operations go to another server, or to this one when it is started again."""
        self._stop.set()
        self._thread.join()
        for claim, process in self._running.items():
            process.kill()
            process.wait()
            self._operations.release(claim, lost=False)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                self._reap()
                for lane in self._lanes:
                    self._fill(lane)
            except sa.exc.OperationalError as error:
                log.warning("database unreachable", error=type(error.orig).__name__)

    def _fill(self, lane: Lane) -> None:
        busy = sum(claim.kind in lane.kinds for claim in self._running)
        while busy < lane.places and (claim := self._operations.claim(lane.kinds, self._settings.lease_s)):
            self._running[claim] = self._spawn(claim)
            busy += 1

    def _spawn(self, claim: Claim) -> subprocess.Popen[bytes]:
        arguments = [
            claim.operation,
            str(claim.attempt),
            OperationMetadata.Kind.Name(claim.kind),
            str(os.getpid()),
        ]
        log.info("worker starts", operation=claim.operation, attempt=claim.attempt)
        # Standard output belongs to the server's own words; a session of its own keeps a terminal's Ctrl-C away.
        process = subprocess.Popen(
            [sys.executable, "-m", "luthier.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=2,
            start_new_session=True,
        )
        assert process.stdin
        # One that has died already is found by the next look.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(self._settings.model_dump_json().encode())
        return process

    def _reap(self) -> None:
        for claim, process in list(self._running.items()):
            if process.poll() is None:
                continue
            log.info("worker ended", operation=claim.operation, attempt=claim.attempt, status=process.returncode)
            self._operations.release(claim, lost=True)
            self._store.clear(self._operations.open)
            # Only now: where the database was away, the next look tries again.
            del self._running[claim]
