"""What is settled by measuring a bundle: calls together, threads for one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from luthier.inference.predictor import Predictor
from luthier.task import Codec, Task
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb
from luthier.v1.model_pb2 import Serving
from luthier.worker import pace

INSTANCES = [pb.Instance(text=str(digit)) for digit in range(10)]


class Rows(Codec):
    """A digit is a row of it."""

    def __init__(self, width: int) -> None:
        self.width = width

    def encode(self, instances: Any) -> dict[str, np.ndarray]:
        return {"row": np.array([[int(instance.text)] * self.width for instance in instances], np.float32)}

    def decode(self, outputs: Any, instances: Any) -> list[Message]:
        return [pb.Prediction() for _ in instances]


class Products(Task):
    """A row by a square matrix, so many times."""

    id = "products"
    service = pb.DESCRIPTOR.services_by_name["TextClassificationService"]

    def __init__(self, folder: Path, width: int, times: int) -> None:
        self.width = width
        nodes = [helper.make_node("MatMul", [f"row{i or ''}", "matrix"], [f"row{i + 1}"]) for i in range(times)]
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("row", f"row{times}")
        ]
        matrix = numpy_helper.from_array(np.eye(width, dtype=np.float32), "matrix")
        graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], [matrix])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, folder / "model.onnx")

    def trainer(self) -> Any:
        raise NotImplementedError

    def instances(self, examples: Any) -> Any:
        raise NotImplementedError

    def score(self, examples: Any, predictions: Any) -> Any:
        raise NotImplementedError

    def open(self, directory: Path) -> Codec:
        return Rows(self.width)


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [
        # A recommender: one product for all.
        ({1: 8.4, 2: 10.0, 4: 13.0, 8: 22.0, 16: 40.0, 32: 78.0}, 16),
        # A convolution: twice as long for twice as many.
        ({1: 1.1, 2: 2.2, 4: 4.5, 8: 9.9}, 1),
        # A small network: much is saved, and less than it takes to put calls together.
        ({1: 0.06, 2: 0.065, 32: 0.2}, 1),
        # A transformer: little more than noise, which one of many is sure to have more of.
        ({1: 6.43, 2: 11.33, 4: 23.76, 8: 44.31, 16: 87.33, 32: 174.5}, 1),
        # It grows slow again.
        ({1: 2.0, 2: 2.4, 4: 3.2, 8: 5.6, 16: 20.0}, 8),
        # A seventh is saved, which is not enough.
        ({1: 10.0, 2: 17.4}, 1),
        ({1: 600.0}, 1),
    ],
)
def test_calls_go_together_where_that_saves_enough(milliseconds: dict[int, float], chosen: int) -> None:
    timings = [Serving.Timing(rows=rows, milliseconds=ms) for rows, ms in milliseconds.items()]
    assert pace.most_rows(timings) == chosen


@pytest.mark.parametrize(
    ("alone_ms", "per_second", "chosen"),
    [
        # A detector: quicker alone, and as many in all.
        ((53.7, 33.6), (34.7, 35.3), 2),
        # A small network: quicker alone, and every call beside it pays.
        ((7.7, 5.4), (238.0, 228.7), 1),
        # Hardly quicker.
        ((8.0, 6.9), (240.0, 250.0), 1),
        # As many but for the noise.
        ((10.0, 6.0), (100.0, 98.5), 2),
    ],
)
def test_a_call_is_divided_where_that_costs_the_others_nothing(
    alone_ms: tuple[float, float], per_second: tuple[float, float], chosen: int
) -> None:
    timings = [
        Serving.ThreadTiming(threads=count, alone_milliseconds=ms, per_second=calls)
        for count, ms, calls in zip((1, 2), alone_ms, per_second, strict=True)
    ]
    assert pace.threads(timings) == chosen


def test_a_short_call_is_timed_together_alone(tmp_path: Path) -> None:
    task = Products(tmp_path, width=8, times=1)
    found = pace.measure(task, tmp_path, INSTANCES)
    assert [timing.rows for timing in found.timings] == [1, 2, 4, 8, 16, 32]
    assert all(timing.milliseconds > 0 for timing in found.timings)
    assert found.most_rows == pace.most_rows(found.timings)
    assert (found.threads, len(found.thread_timings)) == (1, 0)


def test_a_long_call_is_timed_on_all_cores_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "DIVISIBLE_MS", 0.0)
    monkeypatch.setattr(pace, "LOADED_S", 0.02)
    monkeypatch.setattr(pace.os, "sched_getaffinity", lambda _: {0, 1, 2})
    asked: list[int] = []

    class Counted(Predictor):
        def __init__(self, task: Task, directory: Path, threads: int = 1) -> None:
            asked.append(threads)
            super().__init__(task, directory, threads)

    monkeypatch.setattr(pace, "Predictor", Counted)
    found = pace.measure(Products(tmp_path, width=64, times=4), tmp_path, INSTANCES)
    assert asked == [1, 1, 3]
    assert [timing.threads for timing in found.thread_timings] == [1, 3]
    for timing in found.thread_timings:
        assert 0 < timing.alone_milliseconds < 1000
        # Three callers at once, each of which is answered in less than a second.
        assert timing.per_second > 3
    assert found.threads == pace.threads(found.thread_timings)


def test_a_machine_of_one_core_divides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "DIVISIBLE_MS", 0.0)
    monkeypatch.setattr(pace.os, "sched_getaffinity", lambda _: {0})
    found = pace.measure(Products(tmp_path, width=64, times=4), tmp_path, INSTANCES)
    assert (found.threads, len(found.thread_timings)) == (1, 0)
