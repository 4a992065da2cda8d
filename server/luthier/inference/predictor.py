"""One opened bundle: codec, ONNX session, codec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from google.protobuf.message import Message

from luthier.errors import FailedPrecondition
from luthier.task import MODEL_FILE, Task

CUDA = "CUDAExecutionProvider"

_TYPES: dict[str, npt.DTypeLike] = {
    "tensor(bool)": np.bool_,
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}


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

    def __init__(self, task: Task, directory: Path, threads: int = 1, device: str = "cpu") -> None:
        """Raises FailedPrecondition where it cannot compute on the device."""
        self.task = task
        self._codec = task.open(directory)
        wanted = providers(device)
        self._session = ort.InferenceSession(directory / MODEL_FILE, session_options(threads), providers=wanted)
        # Where CUDA's own libraries are amiss, onnxruntime goes on with the CPU.
        if len(self._session.get_providers()) < len(wanted):
            raise FailedPrecondition(f"onnxruntime cannot compute on {device}; its message in the log says why")
        self._outputs = [output.name for output in self._session.get_outputs()]

    def warm_up(self) -> None:
        """Runs the graph once on one row of ones, so that the first call finds its buffers and plans made.

        Ones suit more graphs than zeros: they are places that tables of two rows have, and nothing is divided by 0.
        Raises whatever onnxruntime raises where they do not suit, and KeyError for types that no codec makes.
        """
        self._session.run(
            self._outputs,
            {
                one.name: np.ones([side if isinstance(side, int) else 1 for side in one.shape], _TYPES[one.type])
                for one in self._session.get_inputs()
            },
        )

    def predict(self, instances: Sequence[Message]) -> list[Message]:
        """Returns one prediction for each instance; raises InvalidArgument with every bad field."""
        inputs = self._codec.encode(instances)
        slices = list(_slices(inputs, self._codec.max_rows))
        results = [self._session.run(self._outputs, rows) for rows in slices]
        outputs = results[0] if len(results) == 1 else [np.concatenate(parts) for parts in zip(*results, strict=True)]
        return self._codec.decode(dict(zip(self._outputs, outputs, strict=True)), instances)


def _slices(inputs: Mapping[str, np.ndarray], size: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Inputs by so many rows at once, or as they are where they have no more, or `size` is 0."""
    if not size or (count := len(next(iter(inputs.values())))) <= size:
        yield inputs
        return
    for start in range(0, count, size):
        yield {name: values[start : start + size] for name, values in inputs.items()}
