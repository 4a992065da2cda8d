"""One opened bundle: codec, ONNX session, codec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime as ort
from google.protobuf.message import Message

from luthier.errors import FailedPrecondition
from luthier.task import MODEL_FILE, Task
from luthier.telemetry.meters import VersionMeter

CUDA = "CUDAExecutionProvider"


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
        """Raises FailedPrecondition where it cannot compute on the device. Batches are counted by the meter, if any."""
        self.task = task
        self._meter = meter
        self._codec = task.open(directory)
        wanted = providers(device)
        self._session = ort.InferenceSession(directory / MODEL_FILE, session_options(threads), providers=wanted)
        # Where CUDA's own libraries are amiss, onnxruntime goes on with the CPU.
        if len(self._session.get_providers()) < len(wanted):
            raise FailedPrecondition(f"onnxruntime cannot compute on {device}; its message in the log says why")
        self._outputs = [output.name for output in self._session.get_outputs()]

    def predict(self, instances: Sequence[Message]) -> list[Message]:
        """Returns one prediction for each instance; raises InvalidArgument with every bad field."""
        return self.decode(self.run(self.encode(instances)), instances)

    def encode(self, instances: Sequence[Message]) -> Mapping[str, np.ndarray]:
        """The graph's inputs by name; raises InvalidArgument with every bad field."""
        return self._codec.encode(instances)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The graph's outputs by name, for as many rows as there are."""
        results = [self._compute(rows) for rows in _slices(inputs, self._codec.max_rows)]
        outputs = results[0] if len(results) == 1 else [np.concatenate(parts) for parts in zip(*results, strict=True)]
        return dict(zip(self._outputs, outputs, strict=True))

    def decode(self, outputs: Mapping[str, np.ndarray], instances: Sequence[Message]) -> list[Message]:
        """One prediction for each instance."""
        return self._codec.decode(outputs, instances)

    def _compute(self, rows: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        began = perf_counter()
        outputs: list[np.ndarray] = self._session.run(self._outputs, rows)
        if self._meter is not None:
            self._meter.executed(len(next(iter(rows.values()))), perf_counter() - began)
        return outputs


def _slices(inputs: Mapping[str, np.ndarray], size: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Inputs by so many rows at once, or as they are where they have no more, or `size` is 0."""
    if not size or (count := len(next(iter(inputs.values())))) <= size:
        yield inputs
        return
    for start in range(0, count, size):
        yield {name: values[start : start + size] for name, values in inputs.items()}
