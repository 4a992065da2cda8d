"""A trainer: the process that imports a training framework. It knows no database, only a folder to read and write."""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from luthier import datasets, logs, plugins
from luthier.task import Run, Stopped
from luthier.worker import process
from luthier.worker.trainer_process import read_messages, write_messages

RECORDED = ("luthier", "torch", "transformers", "tokenizers", "implicit", "scipy", "numpy", "onnx", "onnxscript")
"""Packages whose versions are kept with a model, where the trainer has used them."""


def main(directory: Path, pipe: int) -> int:
    """Fine-tunes, exports, and predicts the instances that parity is judged on."""
    spec = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
    process.die_with_parent(spec["parent"])
    logs.configure()
    try:
        _train(directory, spec, pipe)
    except Stopped:
        return 0
    except Exception as error:  # The worker passes on whatever it is.
        status = process.status_of(error, "the training")
        (directory / "error.bin").write_bytes(status.SerializeToString())
        return 1
    return 0


def _train(directory: Path, spec: dict[str, Any], pipe: int) -> None:
    heard: set[int] = set()
    for sign in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(sign, lambda number, _: heard.add(number))
    said = os.fdopen(pipe, "w", encoding="utf-8", buffering=1)
    task = plugins.load().task(spec["task"])
    trainer = task.trainer()
    parts = {name: part for name, part in datasets.load(Path(spec["data"])).items() if name != "test"}
    (directory / "run").mkdir(exist_ok=True)
    run = Run(
        parts=parts,
        config=task.config.FromString((directory / "config.bin").read_bytes()),
        base=Path(spec["base"]) if spec["base"] else None,
        warm_start=spec["warm_start"],
        seed=spec["seed"],
        device=spec["device"],
        directory=directory / "run",
        checkpoint_s=spec["checkpoint_s"],
        emit=lambda event: print(json.dumps(event), file=said),
        cancelled=lambda: signal.SIGTERM in heard,
        paused=lambda: signal.SIGUSR1 in heard,
    )
    model = trainer.fine_tune(run)
    run.report(0, 1, stage="exporting")
    (directory / "bundle").mkdir()
    trainer.export(model, directory / "bundle")
    run.report(0, 1, stage="predicting with the source model")
    instances = read_messages(directory / "instances.bin", task.methods[0].instance)
    write_messages(directory / "predictions.bin", trainer.predict(model, instances))
    outcome = {"figures": run.figures, "packages": _packages()}
    (directory / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


def _packages() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in RECORDED:
        if name in sys.modules:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "unknown"
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
