"""What a server counts of its own work: cheap enough for every prediction, and read by whoever asks.

The histograms of prometheus_client take a lock and walk their buckets at each observation, and a prediction makes
seven. Here the numbers of a call go into plain integers under one lock, and become Prometheus's families when they are
scraped. The same numbers answer ModelStatistics of the Open Inference Protocol.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from weakref import WeakValueDictionary

from google.rpc import code_pb2

from luthier.errors import LuthierError
from luthier.telemetry.calls import Call, current

BOUNDS_S = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds of the buckets of all times, in seconds."""

BOUNDS_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the buckets of batches, in rows."""


STAGES = ("receive", "queue", "encode", "run", "decode")
"""The parts of a prediction, in their order."""

RECEIVE, QUEUE, ENCODE, RUN, DECODE = range(len(STAGES))
"""Their places. RECEIVE is gRPC's: the rest of the call's bytes, their parsing, the wait for a thread. QUEUE is the
wait for the model, RUN the graph."""


class Histogram:
    """Counts by bucket, and a sum. Whoever holds it locks."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values by bucket, which holds its upper bound; the last is of those above all bounds."""
        self.total = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def read(self) -> Distribution:
        """What was counted so far."""
        return Distribution(self._bounds, tuple(self.counts), self.total)


@dataclass(frozen=True)
class Distribution:
    """What a histogram had counted at one moment."""

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts)


@dataclass(frozen=True)
class Statistics:
    """What a version has done since this process loaded it. Times are in seconds."""

    calls: Mapping[str, int]
    """Calls that ended, by the name of their gRPC status; `OK` among them."""
    instances: int
    """Instances in the calls that were answered."""
    last: float
    """When a call was answered last, in seconds since the epoch; 0: never."""
    failed_s: float
    """Total time of the calls that failed, from their arrival."""
    answered: Distribution
    """Time of a call that was answered, from its arrival to its predictions."""
    stages: Mapping[str, Distribution]
    """Time of a call that was answered, by stage."""
    rows: Distribution
    """Rows of a batch: what the graph computed at once."""
    batches: Mapping[int, tuple[int, float]]
    """By number of rows, how often the graph ran and its total time."""
    in_flight: int
    """Calls that have not ended."""
    waiting: int
    """Those of them whose work has not begun."""


class VersionMeter:
    """Counts the predictions of one model version. Thread-safe."""

    def __init__(self, model: str, version: str) -> None:
        """`model` and `version` are labels, such as `beer` and `3`."""
        self.model = model
        self.version = version
        self._lock = threading.Lock()
        self._calls = {"OK": 0}
        self._instances = 0
        self._last = 0.0
        self._failed_s = 0.0
        self._answered = Histogram(BOUNDS_S)
        self._stages = tuple(Histogram(BOUNDS_S) for _ in STAGES)
        self._rows = Histogram(BOUNDS_ROWS)
        self._batches: dict[int, tuple[int, float]] = {}
        # Changed without the lock: each change is one step of a set, and nothing is counted up and down.
        self._active: set[Watch] = set()

    def watch(self, instances: int) -> Watch:
        """A context in which a call for so many instances is answered; what leaves it by an exception has failed."""
        return Watch(self, instances)

    def executed(self, rows: int, seconds: float) -> None:
        """The graph has computed so many rows at once in so many seconds."""
        with self._lock:
            self._rows.add(rows)
            count, total = self._batches.get(rows, (0, 0.0))
            self._batches[rows] = (count + 1, total + seconds)

    def statistics(self) -> Statistics:
        """All that was counted so far, of one moment."""
        active = list(self._active)
        with self._lock:
            return Statistics(
                calls=dict(self._calls),
                instances=self._instances,
                last=self._last,
                failed_s=self._failed_s,
                answered=self._answered.read(),
                stages={name: stage.read() for name, stage in zip(STAGES, self._stages, strict=True)},
                rows=self._rows.read(),
                batches=dict(self._batches),
                in_flight=len(active),
                waiting=sum(watch.waiting for watch in active),
            )

    def _succeed(self, instances: int, seconds: float, stages: Sequence[float]) -> None:
        with self._lock:
            self._calls["OK"] += 1
            self._instances += instances
            self._last = time.time()
            self._answered.add(seconds)
            for histogram, part in zip(self._stages, stages, strict=True):
                histogram.add(part)

    def _fail(self, code: str, seconds: float) -> None:
        with self._lock:
            self._calls[code] = self._calls.get(code, 0) + 1
            self._failed_s += seconds


class Watch:
    """A stopwatch of one call for predictions: each `lap` ends the stage that goes on."""

    __slots__ = ("_arrived", "_call", "_instances", "_last", "_meter", "_seconds", "waiting")

    def __init__(self, meter: VersionMeter, instances: int) -> None:
        now = perf_counter()
        self._meter = meter
        self._instances = instances
        self._call = call = current.get()
        self._arrived = self._last = now if call is None else call.arrived
        self._seconds = [0.0] * len(STAGES)
        self.waiting = True
        """Whether the lap of QUEUE is to come."""
        self.lap(RECEIVE, now)

    def __enter__(self) -> Watch:
        self._meter._active.add(self)
        return self

    def lap(self, stage: int, at: float | None = None, rows: int = 0) -> None:
        """What happened since the lap before was this stage. The one of QUEUE ends the wait.

        `at` is the end of the stage, in seconds of `time.perf_counter`, where that is not now; `rows` the size of the
        batch that it was done in, where that is not the call's own instances.
        """
        began, ended = self._last, perf_counter() if at is None else at
        self._seconds[stage] += ended - began
        self._last = ended
        if stage == QUEUE:
            self.waiting = False
        if self._call is not None and self._call.span is not None:
            meter = self._meter
            self._call.span.stage(STAGES[stage], began, ended, meter.model, meter.version, rows or self._instances)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._meter._active.discard(self)
        if error is None:
            self._meter._succeed(self._instances, self._last - self._arrived, self._seconds)
        else:
            self._meter._fail(code_of(error), perf_counter() - self._arrived)


class MethodMeter:
    """Counts the calls of one gRPC method. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = {"OK": 0}
        self._seconds = Histogram(BOUNDS_S)
        self._active: set[Call] = set()

    def begin(self, call: Call) -> None:
        """A thread has taken a call up."""
        self._active.add(call)

    def end(self, call: Call, code: str, seconds: float) -> None:
        """It ended with this status, so long after it arrived."""
        self._active.discard(call)
        self.count(code, seconds)

    def count(self, code: str, seconds: float) -> None:
        """A call ended with this status, so long after it arrived."""
        with self._lock:
            self._calls[code] = self._calls.get(code, 0) + 1
            self._seconds.add(seconds)

    def read(self) -> tuple[Mapping[str, int], Distribution, int]:
        """Calls by the name of their status, their times, and how many go on."""
        with self._lock:
            return dict(self._calls), self._seconds.read(), len(self._active)


class Meters:
    """All meters of a process. Thread-safe.

    The meter of a version lives as long as somebody who serves the version holds it, and its numbers go with it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._methods: dict[str, MethodMeter] = {}
        self._versions: WeakValueDictionary[tuple[str, str], VersionMeter] = WeakValueDictionary()

    def method(self, name: str) -> MethodMeter:
        """The meter of a method, such as `/luthier.v1.PredictionService/Predict`, which the server has."""
        with self._lock:
            return self._methods.setdefault(name, MethodMeter())

    def version(self, model: str, version: str) -> VersionMeter:
        """The meter of a version, the same one for all who hold it."""
        with self._lock:
            meter = self._versions.get((model, version))
            if meter is None:
                meter = self._versions[model, version] = VersionMeter(model, version)
            return meter

    def methods(self) -> Mapping[str, MethodMeter]:
        """All of methods that were called."""
        with self._lock:
            return dict(self._methods)

    def versions(self) -> list[VersionMeter]:
        """All of versions that are served, by model and version."""
        with self._lock:
            return sorted(self._versions.values(), key=lambda meter: (meter.model, meter.version))


def code_of(error: BaseException) -> str:
    """The name of the gRPC status that an error becomes."""
    return code_pb2.Code.Name(error.code) if isinstance(error, LuthierError) else "INTERNAL"
