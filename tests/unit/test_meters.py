"""What is counted of predictions, for all who ask."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time

import pytest

from luthier.errors import DeadlineExceeded, InvalidArgument
from luthier.telemetry.calls import Call, current
from luthier.telemetry.meters import STAGES, Histogram, Meters, VersionMeter


def test_a_value_is_in_the_bucket_whose_bound_it_reaches() -> None:
    histogram = Histogram((1, 2, 4))
    histogram.add([0.5, 1, 1.5])
    histogram.add([4, 9])
    found = histogram.read()
    assert found.counts == (2, 1, 1, 1)
    assert (found.count, found.total) == (5, 16)


def test_stages_are_the_laps_and_add_up_to_the_whole() -> None:
    meter = VersionMeter("m", "1")
    call = Call(())
    current.set(call)
    try:
        with meter.watch(3) as watch:
            watch.begin(call.arrived + 1)
            watch.computed([call.arrived + number for number in (2, 3, 4)], rows=3)
    finally:
        current.set(None)
    found = meter.statistics()
    assert found.calls == {"OK": 1}
    assert found.instances == 3
    assert found.answered.total == pytest.approx(4)
    assert found.stages.keys() == set(STAGES)
    assert sum(stage.total for stage in found.stages.values()) == pytest.approx(4)
    assert found.stages["run"].total == pytest.approx(1)
    assert found.last > 0


def test_a_call_waits_until_its_lap_of_the_queue_and_is_in_flight_until_its_end() -> None:
    meter = VersionMeter("m", "1")
    seen = []

    def look() -> None:
        found = meter.statistics()
        seen.append((found.in_flight, found.waiting))

    with meter.watch(1) as watch:
        look()
        watch.begin(time.perf_counter())
        look()
        watch.computed([time.perf_counter()] * 3, rows=1)
    look()
    with pytest.raises(DeadlineExceeded), meter.watch(1):
        raise DeadlineExceeded("it waited too long")
    look()
    assert seen == [(1, 1), (1, 0), (0, 0), (0, 0)]


def test_failures_are_counted_by_their_code_and_not_among_the_answers() -> None:
    meter = VersionMeter("m", "1")
    for error in (InvalidArgument({"a": "b"}), InvalidArgument({"a": "b"}), ValueError("a mistake of ours")):
        with pytest.raises(type(error)), meter.watch(1):
            raise error
    found = meter.statistics()
    assert found.calls == {"OK": 0, "INVALID_ARGUMENT": 2, "INTERNAL": 1}
    assert (found.instances, found.answered.count) == (0, 0)
    assert found.failed_s > 0


def test_batches_are_counted_by_size() -> None:
    meter = VersionMeter("m", "1")
    for rows in (1, 8, 8):
        meter.executed(rows, 0.5)
    found = meter.statistics()
    assert found.batches == {1: (1, 0.5), 8: (2, 1.0)}
    assert (found.rows.count, found.rows.total) == (3, 17)


def test_nothing_is_lost_between_threads() -> None:
    meter = VersionMeter("m", "1")

    def predict() -> None:
        for _ in range(2000):
            with meter.watch(2) as watch:
                watch.begin(time.perf_counter())
                meter.executed(2, 0.0)
                watch.computed([time.perf_counter()] * 3, rows=2)

    threads = [threading.Thread(target=predict) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert meter.statistics().in_flight <= 8
    found = meter.statistics()
    assert (found.calls["OK"], found.instances, found.rows.total) == (16_000, 32_000, 32_000)
    assert (found.in_flight, found.waiting) == (0, 0)


def test_a_meter_lives_as_long_as_whoever_serves_its_version() -> None:
    meters = Meters()
    held = meters.version("m", "1")
    assert meters.version("m", "1") is held
    assert meters.versions() == [held]
    gc.disable()
    try:
        # With the last reference, not with the collector's next round.
        del held
        assert meters.versions() == []
    finally:
        gc.enable()


def test_lines_have_the_request_id_of_their_call_and_what_is_always_there() -> None:
    code = """
import logging
import structlog
from luthier import logs
from luthier.telemetry.calls import Call, current

logs.configure(operation="abc")
log = structlog.get_logger()
log.info("outside")
current.set(Call([("x-request-id", "mine")]))
log.info("inside")
logging.getLogger("library").warning("an %s", "argument")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    outside, inside, library = map(json.loads, said.splitlines())
    assert [line["operation"] for line in (outside, inside, library)] == ["abc"] * 3
    assert "request_id" not in outside
    assert inside["request_id"] == library["request_id"] == "mine"
    assert (library["event"], library["logger"], library["level"]) == ("an argument", "library", "warning")
