"""Whose turn it is: a bounded queue for each model, and as many calls at once as there are cores.

A call goes through its model's `Lane`. One that takes little longer than waking a thread is computed at once. Any
other takes a core, or waits in the lane until one is free; the lanes take turns. Whoever gets a core takes along the
calls behind it where the model was measured to be faster with several at once: nobody waits for others to come.

As long as all calls are for one model, and it computes each alone, those that come while all threads compute wait for a
thread, unread, in the order that they came in. To read them and put them in line would change nothing but take threads,
which cost a fifth of all calls. Where models are mixed each call is read as it comes, for one of a quick model is not
to wait for those of a slow one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from luthier.errors import Cancelled, DeadlineExceeded, ResourceExhausted
from luthier.inference.threads import Threads
from luthier.telemetry.meters import VersionMeter, Watch

P = TypeVar("P")
R = TypeVar("R")

AT_ONCE_S = 0.0005
"""Below this a call is computed at once: handing a core over takes a tenth of it."""
HOLD_UP_S = 0.05
"""For so long calls for one model may hold up the first of another."""
LATELY_S = 1.0
"""For so long after calls for two models their calls count as mixed."""
_DOWN, _UP = 0.18, 0.02
"""Weights of a newest call that is quicker or slower than what is known: balanced where one of ten is quicker."""


class Caller(NamedTuple):
    """Who waits for an answer."""

    remaining_s: float | None = None
    """For how long; None: for ever."""
    is_there: Callable[[], bool] = lambda: True


ANYBODY = Caller()


class _Call(Generic[P, R]):
    """A call that wants a core."""

    __slots__ = ("batch", "caller", "deadline", "error", "key", "laps", "payload", "result", "rows", "turn", "watch")

    def __init__(self, payload: P, rows: int, key: Hashable, caller: Caller, watch: Watch) -> None:
        self.payload = payload
        self.rows = rows
        self.key = key
        self.caller = caller
        self.deadline = None if caller.remaining_s is None else time.monotonic() + caller.remaining_s
        self.turn = threading.Lock()
        """Held until the call is answered or is to compute `batch`."""
        self.batch: list[_Call[P, R]] | None = None
        self.watch = watch
        self.laps: tuple[Sequence[float], int] = (), 0
        """The moments of the run that answered it, and its rows."""
        self.result: R | None = None
        self.error: Exception | None = None

    def patience_s(self) -> float:
        """Seconds until its caller gives up, for a lock to wait; -1: for ever."""
        if self.deadline is None:
            return -1
        return min(max(0.0, self.deadline - time.monotonic()), threading.TIMEOUT_MAX)

    def answer(self, result: R | None, error: Exception | None = None) -> None:
        self.result, self.error = result, error
        self.turn.release()


class Cores:
    """The cores of this process, shared by the lanes of all models."""

    def __init__(self, count: int, threads: Threads) -> None:
        self.count = count
        self.threads = threads
        self.lock = threading.Lock()
        self._free = count
        self._lanes: deque[Lane] = deque()  # type: ignore[type-arg]
        """Those in which calls wait, the next one first."""
        # Not the lane itself, which would keep its model in memory.
        self._newest, self._mixed = 0, -math.inf
        threads.is_busy = lambda: not self._free

    def mixes(self, lane: Lane) -> bool:  # type: ignore[type-arg]
        """Notes a call of a lane; whether calls of others came of late."""
        now = time.monotonic()
        if self._newest != id(lane):
            # The first call of all is mixed with none.
            self._mixed = now if self._newest else -math.inf
            self._newest = id(lane)
        return now - self._mixed < LATELY_S

    def take(self) -> bool:
        """Takes a core that is free. With the lock held."""
        if not self._free:
            return False
        self._free -= 1
        return True

    def wait(self, lane: Lane) -> None:  # type: ignore[type-arg]
        """Has a lane in which calls have begun to wait take its turns. With the lock held."""
        self._lanes.append(lane)

    def give(self) -> None:
        """Gives a core to the next lane's calls, or back."""
        with self.lock:
            while self._lanes:
                lane = self._lanes.popleft()
                batch = lane.next_batch()
                if lane.num_waiting:
                    self._lanes.append(lane)
                if batch:
                    batch[0].batch = batch
                    batch[0].turn.release()
                    return
            self._free += 1


class Lane(Generic[P, R]):
    """The calls for one thing that is computed."""

    def __init__(
        self,
        cores: Cores,
        name: str,
        compute: Callable[[Sequence[P], list[float]], Sequence[R]],
        *,
        row_s: float,
        meter: VersionMeter,
        most_rows: int = 1,
        most_waiting: int = 64,
    ) -> None:
        """`compute` answers several payloads of one key at once, and adds the three moments to a list that
        `Predictor.predict` does; `row_s` is what a row alone was measured to take.

        Calls are put together up to `most_rows` rows; 1: never.
        """
        self._cores = cores
        self._name = name
        self._compute = compute
        self.row_s = row_s
        """Seconds for a row, of late: what the quickest tenth take, so that waiting for the interpreter is left out."""
        self._most_rows = most_rows
        self._most_waiting = most_waiting
        self._meter = meter
        self._waiting: deque[_Call[P, R]] = deque()

    @property
    def num_waiting(self) -> int:
        """Calls that wait for their turn."""
        return len(self._waiting)

    def run(self, payload: P, rows: int, caller: Caller = ANYBODY, key: Callable[[], Hashable] = lambda: None) -> R:
        """Computes one call, on this thread or together with others on another.

        Calls of different keys are never put together. Raises what `compute` raises for this one alone;
        ResourceExhausted where too many wait; DeadlineExceeded where the caller will not wait long enough, or has not;
        Cancelled where the caller has gone.
        """
        is_mixed = self._cores.mixes(self)
        with self._meter.watch(rows) as watch:
            if rows * self.row_s >= AT_ONCE_S:
                call = _Call[P, R](payload, rows, key(), caller, watch)
                if is_mixed or self._most_rows > 1:
                    with self._cores.threads.aside():
                        result = self._in_turn(call)
                else:
                    # It may have waited unread.
                    if not caller.is_there():
                        raise Cancelled("the caller is no longer there")
                    self._cores.threads.unread = self._most_unread()
                    result = self._in_turn(call)
                watch.computed(*call.laps)
                return result
            began, laps = time.perf_counter(), list[float]()
            watch.begin(began)
            [result] = self._compute([payload], laps)
            watch.computed(laps, rows)
        self._learn((laps[-1] - began) / rows)
        return result

    def next_batch(self) -> list[_Call[P, R]]:
        """The calls to compute next, out of the queue; none where nobody waits any more. With the lock held.

        Of what waits no more than a core's share: the next core to be free would find nothing left to do.
        """
        batch: list[_Call[P, R]] = []
        rows, now = 0, time.monotonic()
        most_rows = self._most_rows
        if most_rows > 1:
            share = math.ceil(sum(call.rows for call in self._waiting) / self._cores.count)
            most_rows = min(most_rows, share)
        while self._waiting:
            call = self._waiting[0]
            if not call.caller.is_there():
                self._waiting.popleft().answer(None, Cancelled("the caller is no longer there"))
                continue
            if call.deadline is not None and call.deadline <= now:
                self._waiting.popleft().answer(None, DeadlineExceeded("the deadline passed before its turn came"))
                continue
            if batch and (call.key != batch[0].key or rows + call.rows > most_rows):
                break
            if batch and self._is_late((rows + call.rows) * self.row_s, now, [*batch, call]):
                break
            batch.append(self._waiting.popleft())
            rows += call.rows
        return batch

    def _most_unread(self) -> int:
        """How many calls may wait for a thread behind this one: not half of those that may wait, and no more than are
        computed in HOLD_UP_S, for that long the next call for another model may wait behind them."""
        return min((self._most_waiting - 1) // 2, int(HOLD_UP_S * self._cores.count / self.row_s))

    def _in_turn(self, call: _Call[P, R]) -> R:
        with self._cores.lock:
            has_core = self._cores.take()
            if not has_core:
                self._queue(call)
        if has_core:
            return self._lead([call])
        if not call.turn.acquire(timeout=call.patience_s()):
            with self._cores.lock:
                if call in self._waiting:
                    self._waiting.remove(call)
                    raise DeadlineExceeded("the deadline passed before its turn came")
            call.turn.acquire()
        if call.batch:
            return self._lead(call.batch)
        if call.error:
            raise call.error
        return call.result  # type: ignore[return-value]

    def _queue(self, call: _Call[P, R]) -> None:
        """Puts a call behind the others, or raises. With the lock held."""
        before_s = sum(each.rows for each in self._waiting) * self.row_s / self._cores.count
        if len(self._waiting) >= self._most_waiting:
            # So is what waits unread behind it.
            self._cores.threads.relieve()
            raise ResourceExhausted(
                f"{len(self._waiting)} calls wait for {self._name}, which is all that may", retry_s=max(before_s, 0.001)
            )
        if call.deadline is not None and time.monotonic() + before_s + call.rows * self.row_s > call.deadline:
            raise DeadlineExceeded(
                f"the answer would take {before_s + call.rows * self.row_s:.3f} s, longer than the caller waits"
            )
        call.turn.acquire()
        if not self._waiting:
            self._cores.wait(self)
        self._waiting.append(call)

    def _lead(self, batch: list[_Call[P, R]]) -> R:
        """Computes calls on a core that was taken for them, and gives the core on."""
        began = time.perf_counter()
        for call in batch:
            call.watch.begin(began)
        try:
            outcomes = self._outcomes(batch)
        finally:
            self._cores.give()
        if not any(error for _, error in outcomes):
            self._learn((time.perf_counter() - began) / sum(call.rows for call in batch))
        first, *others = zip(batch, outcomes, strict=True)
        for call, (result, error) in others:
            call.answer(result, error)
        result, error = first[1]
        if error:
            raise error
        return result  # type: ignore[return-value]

    def _outcomes(self, batch: list[_Call[P, R]]) -> list[tuple[R | None, Exception | None]]:
        """Result or error of each call; where they fail together, of each alone."""
        laps: list[float] = []
        try:
            results = self._compute([call.payload for call in batch], laps)
            rows = sum(call.rows for call in batch)
            for call in batch:
                call.laps = laps, rows
            return [(result, None) for result in results]
        except Exception as error:
            if len(batch) == 1:
                return [(None, error)]
        return [outcome for call in batch for outcome in self._outcomes([call])]

    def _is_late(self, takes_s: float, now: float, calls: Sequence[_Call[P, R]]) -> bool:
        return any(call.deadline is not None and now + takes_s > call.deadline for call in calls)

    def _learn(self, row_s: float) -> None:
        # Two threads at once lose one of two figures, which is no harm.
        self.row_s += (_DOWN if row_s < self.row_s else _UP) * (row_s - self.row_s)
