"""Luthier's own trainer process, which in the end also times the model in torch beside its ONNX file.

    python tools/quality/trainer.py DIRECTORY PIPE

Both compute on one thread, in turns, the inputs that the codec makes of test instances, one at a time and each at its
own length, torch in inference mode. Writes the medians in milliseconds to `speed.json`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from luthier import plugins
from luthier.inference.predictor import session_options
from luthier.task import MODEL_FILE
from luthier.worker import trainer
from luthier.worker.trainer_process import read_messages

INSTANCES = 40


def main(directory: Path, pipe: int) -> int:
    task = plugins.load().task(json.loads((directory / "spec.json").read_text(encoding="utf-8"))["task"])
    from luthier.toolkit import export

    exported: list[Any] = []
    original = export.export_onnx

    def remember(module: Any, *arguments: Any, **named: Any) -> Path:
        exported.append(module)
        return original(module, *arguments, **named)

    export.export_onnx = remember  # Before the plugin's training module takes it from there.
    if status := trainer.main(directory, pipe):
        return status
    instances = read_messages(directory / "instances.bin", task.methods[0].instance)
    chosen = instances[:: max(1, len(instances) // INSTANCES)][:INSTANCES]
    codec = task.open(directory / "bundle")
    speed = compare(exported[0], directory / "bundle" / MODEL_FILE, [dict(codec.encode([one])) for one in chosen])
    (directory / "speed.json").write_text(json.dumps(speed), encoding="utf-8")
    return 0


def compare(module: Any, path: Path, inputs: list[dict[str, Any]]) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    session = ort.InferenceSession(path, session_options(1), providers=["CPUExecutionProvider"])
    seconds: dict[str, list[float]] = {"eager_ms": [], "onnx_ms": []}

    def timed(name: str, run: Callable[[], object]) -> None:
        started = time.perf_counter()
        run()
        seconds[name].append(time.perf_counter() - started)

    with torch.inference_mode():
        for arrays in [*inputs[:5], *inputs]:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            timed("eager_ms", lambda: module(**tensors))  # noqa: B023 -- it runs at once
            timed("onnx_ms", lambda: session.run(None, arrays))  # noqa: B023
    return {name: statistics.median(taken[5:]) * 1000 for name, taken in seconds.items()}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
