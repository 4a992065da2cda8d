"""One opened bundle: codec, ONNX session, codec."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from google.protobuf.message import Message
from onnxruntime.capi import onnxruntime_pybind11_state

from luthier.errors import FailedPrecondition
from luthier.inference import graphs
from luthier.inference.tensors import Tensor
from luthier.task import MODEL_FILE, Task
from luthier.telemetry.meters import VersionMeter

CUDA = "CUDAExecutionProvider"

CANNOT_COMPUTE = (onnxruntime_pybind11_state.InvalidArgument, onnxruntime_pybind11_state.RuntimeException)
"""What onnxruntime raises for values that a graph was not made for, such as an index beyond a table's end."""


def session_options(threads: int = 1) -> ort.SessionOptions:
    """Options for a session that many threads share: each call computes on the thread that makes it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without it each initializer is copied into an arena that grows in powers of two.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.log_severity_level = 3
    return options


def providers(device: str) -> list[str | tuple[str, dict[str, int]]]:
    """What onnxruntime computes with on `cpu`, `cuda` or `cuda:1`.

    Raises FailedPrecondition where the one that is installed cannot.
    """
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if CUDA not in ort.get_available_providers():
        raise FailedPrecondition(
            f"predictions are to be computed on {device}, and the onnxruntime installed here has the CPU alone: "
            "install onnxruntime-gpu in its place, or start with --serve-device cpu"
        )
    return [(CUDA, {"device_id": int(index or 0)}), "CPUExecutionProvider"]


class Predictor:
    """Predicts with the bundle in a folder. Thread-safe; the only way from instances to predictions there is."""

    def __init__(
        self,
        task: Task,
        directory: Path,
        threads: int = 1,
        device: str = "cpu",
        meter: VersionMeter | None = None,
    ) -> None:
        """Runs of the graph are counted by the meter, if any.

        Raises FailedPrecondition where it cannot compute on the device, DataLoss for a graph that is never loaded.
        """
        self.task = task
        self._meter = meter
        graphs.check(directory / MODEL_FILE)
        self._codec = task.open(directory)
        wanted = providers(device)
        self._session = ort.InferenceSession(directory / MODEL_FILE, session_options(threads), providers=wanted)
        # Where CUDA's own libraries are amiss, onnxruntime goes on with the CPU.
        if len(self._session.get_providers()) < len(wanted):
            raise FailedPrecondition(f"onnxruntime cannot compute on {device}; its message in the log says why")
        self.inputs = [Tensor.of_graph(each) for each in self._session.get_inputs()]
        self.outputs = [Tensor.of_graph(each) for each in self._session.get_outputs()]
        self._names = [output.name for output in self.outputs]

    def warm_up(self) -> None:
        """Runs the graph once on one row of ones, so that the first call finds its buffers and plans made.

        Ones suit more graphs than zeros: they are places that tables of two rows have, and nothing is divided by 0.
        Raises whatever onnxruntime raises where they do not suit.
        """
        ones = {each.name: np.ones([1 if n < 0 else n for n in each.shape], each.dtype) for each in self.inputs}
        self._session.run(self._names, ones)

    def predict(self, instances: Sequence[Message], laps: list[float] | None = None) -> list[Message]:
        """Returns one prediction for each instance; raises InvalidArgument with every bad field.

        Adds the moments to `laps` when the inputs were there, the graph had run, and the predictions were made, by
        `time.perf_counter`.
        """
        inputs = self._codec.encode(instances)
        encoded = time.perf_counter()
        outputs = self._run(inputs, self._names)
        ran = time.perf_counter()
        predictions = self._codec.decode(outputs, instances)
        if laps is not None:
            laps += encoded, ran, time.perf_counter()
        return predictions

    def compute(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], laps: list[float] | None = None
    ) -> dict[str, np.ndarray]:
        """Runs the graph alone: its inputs by name to those of its outputs that are named."""
        began = time.perf_counter()
        found = self._run(inputs, outputs)
        if laps is not None:
            ran = time.perf_counter()
            laps += began, ran, ran
        return found

    def _run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        size, count = self._codec.max_rows, len(next(iter(inputs.values())))
        if not size or count <= size:
            return dict(zip(outputs, self._run_at_once(inputs, outputs), strict=True))
        slices = [{name: rows[i : i + size] for name, rows in inputs.items()} for i in range(0, count, size)]
        parts = zip(*(self._run_at_once(each, outputs) for each in slices), strict=True)
        return {name: np.concatenate(each) for name, each in zip(outputs, parts, strict=True)}

    def _run_at_once(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        began = time.perf_counter()
        found: list[np.ndarray] = self._session.run(outputs, inputs)
        if self._meter is not None:
            self._meter.executed(len(next(iter(inputs.values()))), time.perf_counter() - began)
        return found
