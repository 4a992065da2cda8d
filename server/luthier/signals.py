"""Being told to end."""

from __future__ import annotations

import signal
from queue import SimpleQueue


def ending() -> SimpleQueue[int]:
    """What gets a signal's number when this process is told to end by SIGTERM or SIGINT.

    A signal is handled by the thread that waits for it, at any step of its wait. An event must not be set there: its
    lock may be held by the very wait that was interrupted, and the process would never end. This queue's `put` may.
    """
    ended: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: ended.put(number))
    return ended
