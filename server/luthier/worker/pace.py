"""How a published bundle is best computed, settled by a short measurement: calls together, threads for one call.

What is compared is measured by turns, and the best of the turns counts: whatever else the machine does only ever adds.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google.protobuf.message import Message

from luthier.inference.predictor import Predictor
from luthier.task import Task
from luthier.v1.model_pb2 import Serving

DRAWN = 4
"""Instances that everything is timed with, alone and together: texts differ in length."""
TOGETHER = (1, 2, 4, 8, 16, 32)
"""Numbers of instances that are timed together."""
TURNS = 5
LONGEST_S = 0.5
"""More instances are not tried once so many take this long together: nobody is to wait longer for others."""
NEARLY = 1.1
"""As quick as the quickest number of instances is one that takes no more than so many times as long for each."""
LEAST_GAIN = 0.15
"""Share of an instance's time that has to be saved by computing it together with others."""
LEAST_GAIN_MS = 0.3
"""And the time: calls that are put together were read by threads of their own, which have to be woken. A recommender
of 9,000 items saved 0.24 ms by it and answered a twelfth fewer calls."""

DIVISIBLE_MS = 2.0
"""A shorter call is not divided: waking further threads for each of its layers takes about what they save."""
LOADED_S = 0.3
"""How long in each turn as many callers as cores call."""
LEAST_SAVED = 0.2
"""Share of a lone call's time that further threads have to save."""
MOST_LOST = 0.02
"""Share of the calls in a second that they may cost when every core has a caller of its own: about the noise."""


def measure(task: Task, directory: Path, instances: Sequence[Message]) -> Serving:
    """Times several instances at once, and one instance on several threads."""
    timings = _together(Predictor(task, directory), instances)
    found = Serving(most_rows=most_rows(timings), timings=timings, threads=1)
    cores = len(os.sched_getaffinity(0))
    if cores > 1 and timings[0].milliseconds >= DIVISIBLE_MS:
        divided = _divided([Predictor(task, directory, threads=count) for count in (1, cores)], instances, cores)
        for count, (alone_ms, per_second) in zip((1, cores), divided, strict=True):
            found.thread_timings.add(threads=count, alone_milliseconds=alone_ms, per_second=per_second)
        found.threads = threads(found.thread_timings)
    return found


def most_rows(timings: Sequence[Serving.Timing]) -> int:
    """The least number of instances that are nearly the quickest together; 1 where that saves too little."""
    each = {timing.rows: timing.milliseconds / timing.rows for timing in timings}
    rows = min(count for count, ms in each.items() if ms <= NEARLY * min(each.values()))
    return rows if each[1] - each[rows] > max(LEAST_GAIN_MS, LEAST_GAIN * each[1]) else 1


def threads(timings: Sequence[Serving.ThreadTiming]) -> int:
    """As many as make a lone call much quicker and calls side by side no slower; else 1."""
    one, several = timings
    is_quicker = several.alone_milliseconds <= (1 - LEAST_SAVED) * one.alone_milliseconds
    return several.threads if is_quicker and several.per_second >= (1 - MOST_LOST) * one.per_second else 1


def _together(predictor: Predictor, instances: Sequence[Message]) -> list[Serving.Timing]:
    drawn = [instances[i % len(instances)] for i in range(DRAWN)]
    groups = {rows: [(drawn * rows)[i : i + rows] for i in range(0, max(rows, DRAWN), rows)] for rows in TOGETHER}
    least = {rows: [math.inf] * len(alike) for rows, alike in groups.items()}
    predictor.predict(drawn[:1])
    for _ in range(TURNS):
        for rows, alike in groups.items():
            taken = [_timed(lambda: predictor.predict(group)) for group in alike]  # noqa: B023 -- it runs at once
            least[rows] = [min(pair) for pair in zip(least[rows], taken, strict=True)]
            if min(taken) > LONGEST_S:
                break
    means = {rows: statistics.fmean(seconds) * 1000 for rows, seconds in least.items()}
    return [Serving.Timing(rows=rows, milliseconds=ms) for rows, ms in means.items() if ms < math.inf]


def _divided(predictors: Sequence[Predictor], instances: Sequence[Message], cores: int) -> list[tuple[float, float]]:
    """Of each predictor: milliseconds of a lone call, and calls in a second by a caller for each core."""
    alone, loaded = [math.inf] * len(predictors), [0.0] * len(predictors)
    with ThreadPoolExecutor(cores) as callers:
        for _ in range(TURNS):
            for i, predictor in enumerate(predictors):
                took = [_timed(lambda: predictor.predict(instances[:1])) for _ in range(TURNS)]  # noqa: B023
                alone[i] = min(alone[i], *took)
                loaded[i] = max(loaded[i], _per_second(predictor, instances, callers, cores))
    return [(seconds * 1000, calls) for seconds, calls in zip(alone, loaded, strict=True)]


def _per_second(predictor: Predictor, instances: Sequence[Message], callers: ThreadPoolExecutor, cores: int) -> float:
    started = time.perf_counter()

    def call(offset: int) -> int:
        count = 0
        while time.perf_counter() - started < LOADED_S:
            predictor.predict([instances[(offset + count) % len(instances)]])
            count += 1
        return count

    return sum(callers.map(call, range(cores))) / (time.perf_counter() - started)


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
