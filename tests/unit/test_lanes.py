"""Whose turn it is, which calls go together, and how many threads are at work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from luthier.errors import Cancelled, DeadlineExceeded, InvalidArgument, ResourceExhausted
from luthier.inference.lanes import Caller, Cores, Lane
from luthier.inference.threads import Threads
from luthier.telemetry.meters import VersionMeter

SLOW_S = 1.0
"""What a lane believes of its rows, so that none is computed at once."""


class Model:
    """Doubles numbers once it may; keeps which came together."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def __call__(self, payloads: Sequence[int], laps: list[float]) -> list[int]:
        self.batches.append(list(payloads))
        self.began.release()
        assert self.go.wait(10)
        if -1 in payloads:
            raise InvalidArgument({"number": "is -1"})
        laps += [time.perf_counter()] * 3
        return [2 * payload for payload in payloads]


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(1, most=40)
    yield threads
    threads.shutdown()


@pytest.fixture
def cores(threads: Threads) -> Cores:
    return Cores(1, threads)


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as callers:
        yield callers


def occupied(lane: Lane[int, int], model: Model, callers: ThreadPoolExecutor) -> Future[int]:
    """A call that has the only core."""
    first = callers.submit(lane.run, 0, 1)
    assert model.began.acquire(timeout=10)
    return first


def until_waiting(lane: Lane[int, int], count: int) -> None:
    deadline = time.monotonic() + 10
    while lane.num_waiting < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_calls_that_wait_go_together_and_nobody_waits_for_them(cores: Cores, callers: ThreadPoolExecutor) -> None:
    model = Model()
    lane: Lane[int, int] = Lane(cores, "m", model, row_s=SLOW_S, meter=VersionMeter("m", "1"), most_rows=3)
    first = occupied(lane, model, callers)
    others = []
    for number in (1, 2, 3, 4):
        others.append(callers.submit(lane.run, number, 1))
        until_waiting(lane, number)
    model.go.set()
    assert first.result(10) == 0
    assert [other.result(10) for other in others] == [2, 4, 6, 8]
    assert model.batches == [[0], [1, 2, 3], [4]]


def test_a_core_leaves_the_others_their_share(threads: Threads, callers: ThreadPoolExecutor) -> None:
    model = Model()
    lane: Lane[int, int] = Lane(Cores(2, threads), "m", model, row_s=SLOW_S, meter=VersionMeter("m", "1"), most_rows=8)
    occupied(lane, model, callers)
    occupied(lane, model, callers)
    others = []
    for number in (1, 2, 3, 4, 5):
        others.append(callers.submit(lane.run, number, 1))
        until_waiting(lane, number)
    model.go.set()
    assert [other.result(10) for other in others] == [2, 4, 6, 8, 10]
    assert model.batches[:2] == [[0], [0]]
    assert sorted(model.batches[2:]) == [[1, 2, 3], [4], [5]]


def test_a_bad_call_fails_alone(cores: Cores, callers: ThreadPoolExecutor) -> None:
    model = Model()
    lane: Lane[int, int] = Lane(cores, "m", model, row_s=SLOW_S, meter=VersionMeter("m", "1"), most_rows=8)
    occupied(lane, model, callers)
    others = []
    for place, number in enumerate((1, -1, 2)):
        others.append(callers.submit(lane.run, number, 1))
        until_waiting(lane, place + 1)
    model.go.set()
    assert others[0].result(10) == 2
    assert isinstance(others[1].exception(10), InvalidArgument)
    assert others[2].result(10) == 4
    assert model.batches == [[0], [1, -1, 2], [1], [-1], [2]]


def test_different_keys_never_go_together(cores: Cores, callers: ThreadPoolExecutor) -> None:
    model = Model()
    lane: Lane[int, int] = Lane(cores, "m", model, row_s=SLOW_S, meter=VersionMeter("m", "1"), most_rows=8)
    occupied(lane, model, callers)
    others = []
    for number, key in ((1, "a"), (2, "a"), (3, "b")):
        others.append(callers.submit(lane.run, number, 1, key=lambda key=key: key))
        until_waiting(lane, number)
    model.go.set()
    assert [other.result(10) for other in others] == [2, 4, 6]
    assert model.batches == [[0], [1, 2], [3]]


def test_a_full_lane_refuses_and_says_when_to_try_again(cores: Cores, callers: ThreadPoolExecutor) -> None:
    model = Model()
    lane: Lane[int, int] = Lane(
        cores, "models/m/versions/1", model, row_s=SLOW_S, meter=VersionMeter("m", "1"), most_waiting=2
    )
    occupied(lane, model, callers)
    others = [callers.submit(lane.run, number, 1) for number in (1, 2)]
    until_waiting(lane, 2)
    with pytest.raises(ResourceExhausted, match="2 calls wait for models/m/versions/1") as refused:
        lane.run(3, 1)
    assert refused.value.retry_s == pytest.approx(2 * SLOW_S)
    model.go.set()
    assert sorted(other.result(10) for other in others) == [2, 4]


def test_who_would_be_answered_too_late_is_told_at_once(cores: Cores, callers: ThreadPoolExecutor) -> None:
    model = Model()
    lane: Lane[int, int] = Lane(cores, "m", model, row_s=SLOW_S, meter=VersionMeter("m", "1"))
    occupied(lane, model, callers)
    waiting = callers.submit(lane.run, 1, 1)
    until_waiting(lane, 1)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"the answer would take 2\.000 s, longer than the caller waits"):
        lane.run(2, 1, Caller(1.5))
    assert time.monotonic() - started < 1
    model.go.set()
    assert waiting.result(10) == 2
    assert model.batches == [[0], [1]]


def test_who_has_gone_or_whose_time_is_over_costs_no_work(cores: Cores, callers: ThreadPoolExecutor) -> None:
    model = Model()
    lane: Lane[int, int] = Lane(cores, "m", model, row_s=0.01, meter=VersionMeter("m", "1"))
    occupied(lane, model, callers)
    there = threading.Event()
    there.set()
    gone = callers.submit(lane.run, 1, 1, Caller(is_there=there.is_set))
    until_waiting(lane, 1)
    late = callers.submit(lane.run, 2, 1, Caller(0.1))
    assert isinstance(late.exception(10), DeadlineExceeded)
    there.clear()
    last = callers.submit(lane.run, 3, 1)
    until_waiting(lane, 2)
    model.go.set()
    assert isinstance(gone.exception(10), Cancelled)
    assert last.result(10) == 6
    assert model.batches == [[0], [3]]


def test_lanes_take_turns(cores: Cores, callers: ThreadPoolExecutor) -> None:
    model = Model()
    busy, quiet = (Lane(cores, name, model, row_s=SLOW_S, meter=VersionMeter("m", "1")) for name in ("busy", "quiet"))
    occupied(busy, model, callers)
    calls = []
    for number in (1, 2, 3):
        calls.append(callers.submit(busy.run, number, 1))
        until_waiting(busy, number)
    calls.append(callers.submit(quiet.run, 10, 1))
    until_waiting(quiet, 1)
    model.go.set()
    for call in calls:
        call.result(10)
    assert model.batches == [[0], [1], [10], [2], [3]]


def test_as_many_at_once_as_cores(threads: Threads, callers: ThreadPoolExecutor) -> None:
    model = Model()
    lane: Lane[int, int] = Lane(Cores(2, threads), "m", model, row_s=SLOW_S, meter=VersionMeter("m", "1"))
    calls = [callers.submit(lane.run, number, 1) for number in range(6)]
    until_waiting(lane, 4)
    assert len(model.batches) == 2
    model.go.set()
    assert sorted(call.result(10) for call in calls) == [0, 2, 4, 6, 8, 10]


def test_a_quick_call_is_computed_at_once_on_its_own_thread(cores: Cores, callers: ThreadPoolExecutor) -> None:
    model, where = Model(), []

    def compute(payloads: Sequence[int], laps: list[float]) -> list[int]:
        laps += [time.perf_counter()] * 3
        where.append(threading.get_ident())
        return list(payloads)

    slow: Lane[int, int] = Lane(cores, "slow", model, row_s=SLOW_S, meter=VersionMeter("m", "1"))
    first = occupied(slow, model, callers)
    quick: Lane[int, int] = Lane(cores, "quick", compute, row_s=0.00001, meter=VersionMeter("m", "1"))
    assert quick.run(7, 1) == 7
    assert where == [threading.get_ident()]
    model.go.set()
    assert first.result(10) == 0


def test_what_was_believed_slow_is_found_out_to_be_quick(cores: Cores) -> None:
    def compute(payloads: Sequence[int], laps: list[float]) -> list[int]:
        laps += [time.perf_counter()] * 3
        return list(payloads)

    lane: Lane[int, int] = Lane(cores, "m", compute, row_s=0.01, meter=VersionMeter("m", "1"))
    for number in range(60):
        assert lane.run(number, 1) == number
    assert lane.row_s < 0.0005


def test_a_call_that_waits_leaves_its_place_to_another() -> None:
    threads = Threads(1, most=3)
    release, inside = threading.Event(), threading.Semaphore(0)

    def wait() -> str:
        with threads.aside():
            inside.release()
            assert release.wait(10)
        return threading.current_thread().name

    waiting = [threads.submit(wait) for _ in range(2)]
    assert inside.acquire(timeout=10)
    assert inside.acquire(timeout=10)
    assert threads.submit(lambda: "done").result(10) == "done"
    # The third is at work for the first; one more cannot be had, so who waits now holds its place.
    waiting.append(threads.submit(wait))
    assert inside.acquire(timeout=10)
    queued = threads.submit(lambda: "late")
    time.sleep(0.05)
    assert not queued.done()
    release.set()
    assert queued.result(10) == "late"
    assert len({one.result(10) for one in waiting}) == 3
    threads.shutdown()


def test_calls_for_one_model_wait_without_a_thread_until_they_are_too_many() -> None:
    model, threads = Model(), Threads(1, most=8)
    cores = Cores(1, threads)
    # Two of these are computed in HOLD_UP_S.
    lane: Lane[int, int] = Lane(cores, "m", model, row_s=0.02, meter=VersionMeter("m", "1"), most_waiting=5)
    calls = [threads.submit(lane.run, 0, 1)]
    assert model.began.acquire(timeout=10)
    calls += [threads.submit(lane.run, number, 1) for number in (1, 2)]
    time.sleep(0.05)
    assert (threads.waiting, lane.num_waiting) == (2, 0)
    # Each more has the first of them put in line, until one finds no place there; then nor do those behind it.
    for number in range(3, 8):
        calls.append(threads.submit(lane.run, number, 1))
        until_waiting(lane, number - 2)
        assert threads.waiting == 2
    calls.append(threads.submit(lane.run, 8, 1))
    for refused in calls[6:]:
        with pytest.raises(ResourceExhausted):
            refused.result(10)
    model.go.set()
    assert [call.result(10) for call in calls[:6]] == [0, 2, 4, 6, 8, 10]
    assert threads.submit(lane.run, 9, 1).result(10) == 18
    threads.shutdown()


def test_who_has_gone_while_its_call_waited_unread_is_not_worked_for() -> None:
    model, threads, there = Model(), Threads(1, most=8), threading.Event()
    lane: Lane[int, int] = Lane(Cores(1, threads), "m", model, row_s=0.02, meter=VersionMeter("m", "1"))
    first = threads.submit(lane.run, 0, 1)
    assert model.began.acquire(timeout=10)
    gone = threads.submit(lane.run, 1, 1, Caller(is_there=there.is_set))
    model.go.set()
    with pytest.raises(Cancelled):
        gone.result(10)
    assert first.result(10) == 0
    assert model.batches == [[0]]
    threads.shutdown()


def test_a_quick_model_does_not_wait_for_a_slow_one() -> None:
    slow, quick = Model(), Model()
    threads = Threads(1, most=8)
    cores = Cores(1, threads)
    long: Lane[int, int] = Lane(cores, "slow", slow, row_s=SLOW_S, meter=VersionMeter("slow", "1"))
    short: Lane[int, int] = Lane(cores, "quick", quick, row_s=0.0001, meter=VersionMeter("quick", "1"))
    quick.go.set()
    assert threads.submit(short.run, 1, 1).result(10) == 2
    calls = [threads.submit(long.run, number, 1) for number in range(3)]
    assert slow.began.acquire(timeout=10)
    assert threads.submit(short.run, 2, 1).result(10) == 4
    assert not calls[0].done()
    slow.go.set()
    assert [call.result(10) for call in calls] == [0, 2, 4]
    threads.shutdown()


def test_threads_at_work_stay_as_many_as_cores() -> None:
    threads, at_work, most = Threads(2, most=20), [], []
    lock = threading.Lock()

    def work(number: int) -> int:
        with threads.aside():
            time.sleep(0.002)
        with lock:
            at_work.append(number)
            most.append(len(at_work))
        time.sleep(0.001)
        with lock:
            at_work.remove(number)
        return number

    assert [f.result(10) for f in [threads.submit(work, n) for n in range(200)]] == list(range(200))
    # Later, with nobody aside, no more than two take calls.
    most.clear()

    def plain(number: int) -> None:
        with lock:
            at_work.append(number)
            most.append(len(at_work))
        time.sleep(0.002)
        with lock:
            at_work.remove(number)

    for future in [threads.submit(plain, n) for n in range(100)]:
        future.result(10)
    assert max(most[-50:]) <= 2
    threads.shutdown()


def test_an_error_reaches_who_submitted(threads: Threads) -> None:
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(10)
    assert threads.submit(lambda: 1).result(10) == 1
