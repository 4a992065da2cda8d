"""What one version has answered since it was loaded, and where the time went."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field

BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets that times are counted in, in seconds; a last one has no bound."""


@dataclass
class Times:
    """How often something was timed, and how long it took."""

    count: int = 0
    total_s: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    """How many took at most each of BOUNDS_S, and no less than the one before."""

    def add(self, seconds: float) -> None:
        """Counts one more."""
        self.count += 1
        self.total_s += seconds
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1


@dataclass
class Runs:
    """Runs of the graph for one number of rows."""

    count: int = 0
    encode_s: float = 0.0
    run_s: float = 0.0
    decode_s: float = 0.0


@dataclass
class Figures:
    """What was counted: calls, which are answered, and runs of the graph, of which one may answer several calls."""

    answered: Times = field(default_factory=Times)
    """Calls with an answer, from the moment that their request was there."""
    failed: Times = field(default_factory=Times)
    """Calls without: their input was bad, too many waited, their time was over."""
    failures: dict[str, int] = field(default_factory=dict)
    """The latter by the reason of their error."""
    queue: Times = field(default_factory=Times)
    """Waiting for a core."""
    encode: Times = field(default_factory=Times)
    """Making the graph's inputs."""
    run: Times = field(default_factory=Times)
    decode: Times = field(default_factory=Times)
    """Making predictions of the graph's outputs."""
    runs: dict[int, Runs] = field(default_factory=dict)
    """By the rows that were computed together."""
    last: float = 0.0
    """When the last run was, in seconds of Unix time."""

    @property
    def num_rows(self) -> int:
        """Rows that were computed."""
        return sum(rows * runs.count for rows, runs in self.runs.items())


class Tally:
    """Counts what one version does. Threads share it; the lock is held for a microsecond or two."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._figures = Figures()

    def ran(self, rows: int, encode_s: float, run_s: float, decode_s: float) -> None:
        """The graph was run for so many rows."""
        figures = self._figures
        with self._lock:
            figures.encode.add(encode_s)
            figures.run.add(run_s)
            figures.decode.add(decode_s)
            runs = figures.runs.get(rows) or figures.runs.setdefault(rows, Runs())
            runs.count += 1
            runs.encode_s += encode_s
            runs.run_s += run_s
            runs.decode_s += decode_s
            figures.last = time.time()

    def answered(self, queue_s: float, total_s: float) -> None:
        """A call was answered."""
        with self._lock:
            self._figures.queue.add(queue_s)
            self._figures.answered.add(total_s)

    def failed(self, reason: str, total_s: float) -> None:
        """A call was not answered."""
        with self._lock:
            self._figures.failed.add(total_s)
            self._figures.failures[reason] = self._figures.failures.get(reason, 0) + 1

    def read(self) -> Figures:
        """The figures of this moment, a copy."""
        with self._lock:
            figures = self._figures
            return Figures(
                **{name: _copy(getattr(figures, name)) for name in _TIMES},
                failures=dict(figures.failures),
                runs={rows: Runs(**vars(runs)) for rows, runs in figures.runs.items()},
                last=figures.last,
            )


_TIMES = ("answered", "failed", "queue", "encode", "run", "decode")


def _copy(times: Times) -> Times:
    return Times(times.count, times.total_s, list(times.buckets))
