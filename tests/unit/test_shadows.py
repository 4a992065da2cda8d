"""Shadows: done by and by, dropped where there is too much, and nobody's trouble."""

from __future__ import annotations

import threading

from luthier.inference import shadows
from luthier.inference.shadows import Shadows


class Busy:
    """Threads that answer callers, and how many callers wait for one."""

    waiting = 0


def test_too_much_is_dropped_and_a_failure_stops_nothing() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()
    asked = Shadows(Busy())  # type: ignore[arg-type]
    asked.start()

    def hold() -> None:
        begun.set()
        assert go_on.wait(10)
        raise ValueError("nobody hears it")

    assert asked.offer(hold)
    assert begun.wait(10)
    taken = [asked.offer(done.set) for _ in range(shadows.MOST_WAITING + 5)]
    assert taken == [True] * shadows.MOST_WAITING + [False] * 5
    assert asked.dropped == 5
    go_on.set()
    assert done.wait(10)
    asked.stop()


def test_callers_come_first() -> None:
    busy = Busy()
    asked = Shadows(busy)  # type: ignore[arg-type]
    asked.start()
    busy.waiting = 1
    assert not asked.offer(lambda: None)
    busy.waiting = 0
    assert asked.offer(lambda: None)
    assert asked.dropped == 1
    asked.stop()
