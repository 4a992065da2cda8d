"""Which calls of a version go together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest

from luthier.inference.lanes import Cores
from luthier.inference.predictor import Predictor
from luthier.inference.served import Served
from luthier.inference.tensors import Tensor
from luthier.inference.threads import Threads
from luthier.task import Task
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb
from luthier.telemetry.meters import VersionMeter
from luthier.v1.model_pb2 import ModelVersion, Serving, Variant


class Echo(Task):
    """Never trained."""

    id = "echo"
    service = pb.DESCRIPTOR.services_by_name["TextClassificationService"]
    trainer = open = instances = score = None  # type: ignore[assignment]


class Doubling:
    """A predictor whose graph gives twice its input, once it may."""

    def __init__(self, columns: int) -> None:
        self.inputs = [Tensor("x", "FP32", (-1, -1))]
        self.outputs = [Tensor("y", "FP32", (-1, columns))]
        self.go, self.began = threading.Event(), threading.Event()
        self.rows: list[int] = []

    def compute(self, inputs: Any, outputs: Sequence[str], laps: list[float]) -> dict[str, np.ndarray]:
        self.rows.append(len(inputs["x"]))
        self.began.set()
        assert self.go.wait(10)
        laps += [time.perf_counter()] * 3
        return {"y": 2 * inputs["x"]}


@pytest.fixture
def threads() -> Iterator[Threads]:
    with Threads(1, most=10) as threads:
        yield threads


@pytest.mark.parametrize(("columns", "rows"), [(2, [1, 5]), (-1, [1, 2, 3])], ids=["fixed", "any length"])
def test_tensors_go_together_where_nobody_would_see_it(threads: Threads, columns: int, rows: list[int]) -> None:
    doubling = Doubling(columns)
    version = ModelVersion(
        name="models/m/versions/1",
        variants=[Variant(latency_ms=1000, served=True)],
        serving=Serving(most_rows=8),
    )
    predictor = cast(Predictor, doubling)
    meter = VersionMeter("m", "1")
    served = Served(version, Echo(), predictor, meter, cores=Cores(1, threads), most_waiting=8)
    with ThreadPoolExecutor(3) as callers:
        calls = []
        for count in (1, 2, 3):
            x = np.full((count, 2), count, np.float32)
            calls.append(callers.submit(served.compute, {"x": x}, ["y"]))
            assert doubling.began.wait(10)
            deadline = time.monotonic() + 10
            while meter.statistics().waiting < count - 1:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        time.sleep(0.05)
        doubling.go.set()
        found = [call.result(10)["y"] for call in calls]
    assert doubling.rows == rows
    assert [y.tolist() for y in found] == [[[2.0 * n] * 2] * n for n in (1, 2, 3)]
