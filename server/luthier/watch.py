"""Looks at the live predictions of every version that an alias names, and says when drift begins and ends."""

from __future__ import annotations

import os
import threading
import time

import sqlalchemy as sa
import structlog

from luthier.errors import LuthierError
from luthier.monitoring import Monitoring
from luthier.v1.monitoring_pb2 import Drift

log = structlog.get_logger()

KEPT_S = 90 * 24 * 3600.0
"""Seconds that what was found is kept."""
_REST_S = 0.005
"""Between handfuls of predictions: whoever predicts comes first."""
_NICE = 10


class Watch:
    """Looks at windows that end at whole intervals, on a thread of its own. Of servers that share a database, one looks
    at each."""

    def __init__(self, monitoring: Monitoring, interval_s: float, window_s: float) -> None:
        """0 as interval: never."""
        self._monitoring = monitoring
        self._interval_s = interval_s
        self._window_s = window_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begins."""
        if self._interval_s:
            self._thread.start()

    def stop(self) -> None:
        """Ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self, end: float) -> None:
        """Looks once at the window that ends then, of each version."""
        for model, number in self._monitoring.live():
            since = end - self._window_s
            if self._stop.is_set() or not self._monitoring.has_any(model, number, since, end):
                continue
            if not self._monitoring.claim(model, number, end):
                continue
            before = self._monitoring.windows(model, number, end, 1)
            try:
                found = self._monitoring.look(model, number, since, end, lambda: self._stop.wait(_REST_S))
            except LuthierError as error:
                # Without a profile there is nothing to tell, which is said to whoever asks.
                log.debug("not watched", model=model, version=number, why=error.message)
                continue
            self._monitoring.keep(model, number, end, found)
            _tell(found, before[0][1] if before else None)
        self._monitoring.forget(end - KEPT_S)

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stop.wait(self._interval_s - time.time() % self._interval_s):
            now = time.time()
            try:
                self.look(now - now % self._interval_s)
            except sa.exc.OperationalError as error:
                log.warning("database unreachable", error=type(error.orig).__name__)
            except Exception as error:  # The facts of a plugin may trip over anything; the next window is another.
                log.error("the watch failed", exc_info=error)


def _tell(found: Drift, before: Drift | None) -> None:
    """Says when drift, and a score below that of the publication, begins and ends."""
    was = before if before is not None else Drift()
    version = found.model_version
    drifts, drifted = (one.verdict == Drift.VERDICT_ALARM for one in (found, was))
    if drifts and not drifted:
        moved = [one.name for one in found.features if one.alarm]
        log.warning("drift begins", version=version, features=moved, predictions=found.num_predictions)
    elif drifted and not drifts:
        log.info("drift ends", version=version)
    if found.live.worse and not was.live.worse:
        log.warning(
            "live score falls",
            version=version,
            metric=found.live.metric,
            value=found.live.value,
            published=found.live.published,
        )
    elif was.live.worse and not found.live.worse:
        log.info("live score is back", version=version, metric=found.live.metric, value=found.live.value)
