"""Predictions that nobody waits for, made after the answer where there is time for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Full, Queue

import structlog

from luthier.errors import LuthierError
from luthier.inference.threads import Threads
from luthier.logs import unexpected

log = structlog.get_logger()

MOST_WAITING = 8
"""Predictions that may wait, each with its call's instances; further ones are dropped, and counted."""


class Shadows:
    """One thread, whose work is dropped when there is more than it can do or when callers wait for a thread."""

    def __init__(self, threads: Threads) -> None:
        """`threads` are those that answer callers."""
        self._threads = threads
        self._waiting: Queue[Callable[[], None] | None] = Queue(MOST_WAITING)
        self.dropped = 0
        """Predictions that were not made since the start."""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="shadows", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, once the prediction under way is made."""
        while True:
            try:
                self._waiting.put_nowait(None)
                break
            except Full:
                self._waiting.get()
        self._thread.join()

    def offer(self, work: Callable[[], None]) -> bool:
        """Does something by and by, or drops it at once and returns False."""
        if not self._threads.waiting:
            try:
                self._waiting.put_nowait(work)
                return True
            except Full:
                pass
        with self._lock:
            self.dropped += 1
        return False

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            try:
                work()
            except LuthierError as error:
                # Its message may repeat some of an input.
                log.warning("shadow failed", reason=error.reason)
            except Exception as error:
                unexpected(error, "shadow")
