"""One attempt at an operation, as the code that does it sees it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from luthier.bases import Catalogue
from luthier.database import Database
from luthier.errors import Cancelled
from luthier.operations import Claim, LeaseLost, Operations, Wish
from luthier.plugins import Plugins
from luthier.registry import Registry
from luthier.settings import Settings
from luthier.store import Store
from luthier.v1 import operation_pb2

log = structlog.get_logger()

FLUSH_S = 0.5
"""Seconds between writes of events and looks for a cancellation."""

Publish = Callable[[sa.Connection], Message]
"""What makes a finished piece of work visible, and returns the operation's response. It runs in the one transaction
that also ends the operation, so that both happen or neither."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a server's worker works with."""

    settings: Settings
    database: Database
    operations: Operations
    registry: Registry
    store: Store
    plugins: Plugins
    catalogue: Catalogue


class Paused(Exception):
    """Work that stops because someone asked for a pause."""


class Job:
    """Keeps the lease of an operation while its work is done, passes on what happens, and says when to stop."""

    def __init__(self, tools: Tools, claim: Claim) -> None:
        self.tools = tools
        self.claim = claim
        self.directory: Path = tools.store.work(claim.operation, claim.attempt)
        self.wish: Wish = ""
        """What someone asked for; a wish for an end may follow one for a pause."""
        self._lock = threading.Lock()
        self._pending: list[operation_pb2.OperationEvent] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def request(self, kind: type[Message]) -> Any:
        """The request that the operation was submitted with."""
        return self.tools.operations.request(self.claim, kind)

    def check(self) -> None:
        """Raises Cancelled where someone asked for an end, Paused where it was for a pause."""
        if self.wish == "cancel":
            raise Cancelled("the operation was cancelled")
        if self.wish == "pause":
            raise Paused

    def emit(self, event: dict[str, Any]) -> None:
        """Takes an event in the JSON form of OperationEvent; of progress only the newest is kept until written."""
        message = ParseDict(event, operation_pb2.OperationEvent())
        with self._lock:
            last = self._pending[-1] if self._pending else None
            if last is not None and last.HasField("progress") and message.HasField("progress"):
                self._pending.pop()
            self._pending.append(message)

    def progress(self, stage: str, step: int, total: int) -> None:
        """Says how far a stage has come; raises Cancelled and Paused."""
        self.check()
        self.emit({"progress": {"stage": stage, "step": step, "total": total}})

    def finish(self) -> None:
        """Ends the heartbeats, after the last events are written."""
        self._ended.set()
        self._thread.join()
        self._flush()

    def _keep(self) -> None:
        """Heartbeats and events, until the end. Work whose lease is lost is of no use to anyone: the process ends."""
        settings = self.tools.settings
        deadline = time.monotonic() + settings.lease_s
        while not self._ended.wait(FLUSH_S):
            try:
                self._flush()
                # A pause that is withdrawn goes on to its end, after which the operation is taken up again at once.
                self.wish = self.tools.operations.heartbeat(self.claim, settings.lease_s) or self.wish
                deadline = time.monotonic() + settings.lease_s
            except LeaseLost as error:
                log.warning("lease lost", operation=self.claim.operation, why=error.message)
                os._exit(1)
            except sa.exc.OperationalError as error:
                log.warning("database unreachable", error=type(error.orig).__name__)
                if time.monotonic() > deadline:
                    os._exit(1)

    def _flush(self) -> None:
        with self._lock:
            happened, self._pending = self._pending, []
        if happened:
            self.tools.operations.emit(self.claim, happened)
