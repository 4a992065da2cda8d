"""Ending a call whose caller has fallen silent: a stream's thread must not wait for it for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

M = TypeVar("M")


class Watchdog:
    """Calls `cancel` once nothing has come for so many seconds. A context manager."""

    def __init__(self, idle_s: float, cancel: Callable[[], object]) -> None:
        self._idle_s = idle_s
        self._cancel = cancel
        self._heard = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def watched(self, messages: Iterator[M]) -> Iterator[M]:
        """The messages, each of which is a sign of life."""
        for message in messages:
            self._heard = time.monotonic()
            yield message

    def _watch(self) -> None:
        while not self._over.wait(max(0.0, self._heard + self._idle_s - time.monotonic())):
            if time.monotonic() - self._heard >= self._idle_s:
                self._cancel()
                return
