"""What a server counts of its own work: cheap enough for every prediction, and read by whoever asks.

The histograms of prometheus_client take a lock and walk their buckets at each observation, and a prediction makes
seven. Here a call only leaves its numbers behind; they are counted many calls at once, and become Prometheus's families
when they are scraped. The same numbers answer ModelStatistics of the Open Inference Protocol.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
from google.rpc import code_pb2

from luthier.errors import LuthierError
from luthier.telemetry.calls import Call, current

BOUNDS_S = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds of the buckets of all times, in seconds."""

BOUNDS_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the buckets of batches, in rows."""


STAGES = ("receive", "queue", "encode", "run", "decode")
"""The parts of a prediction, in their order. The first is gRPC's: the rest of the call's bytes, their parsing, the wait
for a thread. `queue` is the wait for the model, `run` the graph."""

T = TypeVar("T")


class Histogram:
    """Counts by bucket, and a sum. Whoever holds it locks."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._total = 0.0

    def add(self, values: npt.ArrayLike) -> None:
        """Counts values, each in the bucket whose upper bound it reaches or stays below; above all is a bucket too."""
        self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._total += float(np.sum(values))

    def read(self) -> Distribution:
        """What was counted so far."""
        return Distribution(self._bounds, tuple(self._counts.tolist()), self._total)


class _Backlog(Generic[T]):
    """What calls leave behind, without a lock, until there is enough of it to be counted at once."""

    MOST = 256

    def __init__(self) -> None:
        self._left: deque[T] = deque()

    def add(self, one: T) -> bool:
        """Leaves something behind; whether it is to be counted now."""
        self._left.append(one)
        return len(self._left) >= self.MOST

    def take(self) -> list[T]:
        """What was left so far. With the lock of whoever counts held."""
        return [self._left.popleft() for _ in range(len(self._left))]


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
        self._answers = _Backlog[tuple[int, Sequence[float]]]()
        self._runs = _Backlog[tuple[int, float]]()
        # Changed without the lock: each change is one step of a set, and nothing is counted up and down.
        self._active: set[Watch] = set()

    def watch(self, instances: int) -> Watch:
        """A context in which a call for so many instances is answered; what leaves it by an exception has failed."""
        return Watch(self, instances)

    def executed(self, rows: int, seconds: float) -> None:
        """The graph has computed so many rows at once in so many seconds."""
        if self._runs.add((rows, seconds)):
            with self._lock:
                self._settle()

    def statistics(self) -> Statistics:
        """All that was counted so far, of one moment."""
        active = list(self._active)
        with self._lock:
            self._settle()
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

    def _succeed(self, instances: int, moments: Sequence[float]) -> None:
        self._last = time.time()
        if self._answers.add((instances, moments)):
            with self._lock:
                self._settle()

    def _fail(self, code: str, seconds: float) -> None:
        with self._lock:
            self._calls[code] = self._calls.get(code, 0) + 1
            self._failed_s += seconds

    def _settle(self) -> None:
        """Counts what calls left behind. With the lock held."""
        if answers := self._answers.take():
            self._calls["OK"] += len(answers)
            self._instances += sum(instances for instances, _ in answers)
            moments = np.array([moments for _, moments in answers])
            self._answered.add(moments[:, -1] - moments[:, 0])
            for histogram, seconds in zip(self._stages, np.diff(moments).T, strict=True):
                histogram.add(seconds)
        if runs := self._runs.take():
            self._rows.add([rows for rows, _ in runs])
            for number, took in runs:
                count, total = self._batches.get(number, (0, 0.0))
                self._batches[number] = (count + 1, total + took)


class Watch:
    """A stopwatch of one call for predictions."""

    __slots__ = ("_call", "_instances", "_meter", "_moments", "_rows")

    def __init__(self, meter: VersionMeter, instances: int) -> None:
        now = perf_counter()
        self._meter = meter
        self._instances = self._rows = instances
        self._call = call = current.get()
        self._moments = [now if call is None else call.arrived, now]
        """When the call arrived, and when each stage ended."""

    @property
    def waiting(self) -> bool:
        """Whether the work has not begun."""
        return len(self._moments) == 2

    def __enter__(self) -> Watch:
        self._meter._active.add(self)
        return self

    def begin(self, at: float) -> None:
        """The wait for the model ended, at a moment of `time.perf_counter` as all are."""
        self._moments.append(at)

    def computed(self, moments: Sequence[float], rows: int) -> None:
        """When the stages after that ended, in a batch of so many rows."""
        self._moments += moments
        self._rows = rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        meter, moments, call = self._meter, self._moments, self._call
        meter._active.discard(self)
        if error is None:
            meter._succeed(self._instances, moments)
        else:
            meter._fail(code_of(error), perf_counter() - moments[0])
        if call is not None and call.span is not None:
            for stage, began, ended in zip(STAGES, moments, moments[1:], strict=False):
                rows = self._rows if stage in _TOGETHER else self._instances
                call.span.stage(stage, began, ended, meter.model, meter.version, rows)


_TOGETHER = frozenset(STAGES[2:])
"""The stages that calls of one batch share."""


class MethodMeter:
    """Counts the calls of one gRPC method. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = Counter({"OK": 0})
        self._seconds = Histogram(BOUNDS_S)
        self._ended = _Backlog[tuple[str, float]]()
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
        if self._ended.add((code, seconds)):
            with self._lock:
                self._settle()

    def read(self) -> tuple[Mapping[str, int], Distribution, int]:
        """Calls by the name of their status, their times, and how many go on."""
        with self._lock:
            self._settle()
            return dict(self._calls), self._seconds.read(), len(self._active)

    def _settle(self) -> None:
        if ended := self._ended.take():
            self._calls.update(code for code, _ in ended)
            self._seconds.add([seconds for _, seconds in ended])


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
