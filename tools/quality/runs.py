"""One fine-tune as the server does it, by its own data set code and trainer process, and all that is measured of it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, product
from pathlib import Path
from typing import Any

import pyarrow as pa
from cases import MOBILENET, Case, data_files
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.rpc import status_pb2

from luthier import bases, datasets, fields, plugins
from luthier.bases import Catalogue
from luthier.task import MODEL_FILE, Task
from luthier.worker import evaluate, variants
from luthier.worker.child import ENVIRONMENT
from luthier.worker.quantize import NotQuantisable, quantise
from luthier.worker.trainer_process import collect, commission, read_messages, write_messages

CHECKPOINT_S = 60.0
TUNED, OTHER, TIMED = "tuned", "other", "timed"
"""Trained by the defaults; what that is compared with; trained for an epoch and timed, whatever the weights."""


@dataclass(frozen=True)
class Run:
    """What is to be trained: a fold of a case, from the base or as the other that it is compared with, with a seed."""

    case: Case
    start: str
    seed: int
    fold: int = 0

    @property
    def name(self) -> str:
        fold = f"-fold{self.fold}" if self.case.folds > 1 else ""
        return f"{self.case.id}-{self.start}-seed{self.seed}{fold}"

    def compared(self) -> tuple[list[Run], list[Run]]:
        """The runs of its case, tuned and other, whose predictions are compared."""
        folds = range(self.case.folds)
        return [Run(self.case, TUNED, 0, fold) for fold in folds], [Run(self.case, OTHER, 0, fold) for fold in folds]


def planned(cases: Iterable[Case], seeds: int) -> Iterator[Run]:
    """The runs in the order of their worth: timings, a seed of each case and what it is compared with, more seeds."""
    cases = list(cases)
    yield from (Run(case, TIMED, 0) for case in cases if case.base)
    for case in cases:
        yield from chain(*Run(case, TUNED, 0).compared())
    for seed, case in product(range(1, seeds), cases):
        yield from (Run(case, TUNED, seed, fold) for fold in range(case.folds))


def machine() -> str:
    """The processor and the packages that a run is made with."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "transformers", "onnxruntime"))
    flags, model = (_cpuinfo(key) for key in ("flags", "model name"))
    able = ", ".join(name for name in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if name in flags.split())
    model = model or platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {model} ({able}), Python {platform.python_version()}, {packages}"


def _cpuinfo(key: str) -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith(key)), "")


class Workshop:
    """A folder where data sets, bases and results are kept, so that nothing is computed twice."""

    def __init__(self, directory: Path, shared: Path) -> None:
        self.directory = directory
        self.shared = shared
        self.tasks = plugins.load()

    def task(self, case: Case) -> Task:
        return self.tasks.task(case.task)

    def data(self, case: Case, fold: int) -> Path:
        """The data set version of a case."""
        target = self.directory / "data" / (f"{case.id}-fold{fold}" if case.folds > 1 else case.id)
        if not (target / datasets.DESCRIPTION).exists():
            task = self.task(case)
            with tempfile.TemporaryDirectory() as scratch:
                files = data_files(case, task, self.shared / "data", Path(scratch), fold)
                datasets.build(task, files, case.split, target)
        return target

    def test(self, case: Case, fold: int) -> pa.Table:
        return datasets.load(self.data(case, fold), ["test"])["test"]

    def base(self, case: Case) -> Path | None:
        """The files of the case's base."""
        if not case.base:
            return None
        if case.base != MOBILENET:
            return bases.pull(Catalogue.load().get(case.base), self.directory / "bases")
        target = self.directory / "bases" / MOBILENET
        if not target.exists():
            weights = self.shared / "weights" / "mobilenet_v2_in1k_fp16.safetensors"
            _import(MOBILENET, weights, target)
        return target

    def predicted(self, run: Run) -> bool:
        """Whether the run's predictions are here."""
        return self._served(run).exists()

    def predictions(self, run: Run) -> list[Message]:
        """What the run's bundle predicts for the test part."""
        return read_messages(self._served(run), self.task(run.case).methods[0].prediction)

    def _served(self, run: Run) -> Path:
        return self.directory / "runs" / run.name / "served.bin"

    def make(self, run: Run) -> dict[str, Any]:
        """Trains, exports, predicts with both sides, measures; returns the record."""
        task, data = self.task(run.case), self.data(run.case, run.fold)
        target = self.directory / "runs" / run.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        test = self.test(run.case, run.fold)
        instances = task.instances(test)
        _train(run, task, data, self.base(run.case), instances, target)
        outcome = collect(target, task)
        served = evaluate.predict(task, outcome.bundle, instances)
        metrics = dict(task.score(test, served).metrics)
        record: dict[str, Any] = {
            "metrics": {peer.metric: metrics[peer.metric] for peer in run.case.peers},
            "primary": task.primary_metric,
            "served": metrics[task.primary_metric],
            "source": task.score(test, outcome.predictions).metrics[task.primary_metric],
            "predictions": len(served),
            "changed": sum(_said(a) != _said(b) for a, b in zip(outcome.predictions, served, strict=True)),
            "training_s": outcome.figures["training_s"],
        }
        if (target / "speed.json").exists():
            record |= json.loads((target / "speed.json").read_text(encoding="utf-8"))
        if run.start != OTHER and run.seed == 0 and run.fold == 0:
            record["int8"] = _int8(run, task, data, test, instances, target)
        write_messages(self._served(run), served)
        shutil.rmtree(target / "run")
        return record


def _import(architecture: str, weights: Path, target: Path) -> None:
    """Makes a checkpoint a base, by the server's importer process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        spec: dict[str, Any] = {"id": architecture, "architecture": architecture, "weights": str(weights)}
        spec |= {"files": {}, "preprocessing": {}, "parent": os.getpid()}
        (Path(folder) / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        _child(["-m", "luthier.worker.importer"], Path(folder), lambda lines: None)
        (Path(folder) / "base").rename(target)


def _train(run: Run, task: Task, data: Path, base: Path | None, instances: Sequence[Message], target: Path) -> None:
    """Runs the trainer process to its end, and shows its progress."""
    settings: dict[str, Mapping[str, object]] = {TUNED: {}, OTHER: run.case.other, TIMED: {"epochs": 1}}
    config = ParseDict(dict(settings[run.start]), task.config())
    fields.resolve(config)
    commission(target, task, config, data, base, run.seed, instances, CHECKPOINT_S)
    trainer = [str(Path(__file__).with_name("trainer.py"))] if run.start == TIMED else ["-m", "luthier.worker.trainer"]
    _child(trainer, target, lambda lines: _show(run, lines))


def _child(program: list[str], directory: Path, listen: Callable[[Iterator[str]], None]) -> None:
    """Runs a child of the worker's to its end: a folder to read and write, and a pipe on which it says events."""
    read_end, write_end = os.pipe()
    command = [sys.executable, *program, str(directory), str(write_end)]
    process = subprocess.Popen(command, pass_fds=[write_end], env=ENVIRONMENT | os.environ)
    os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as lines:
        listen(lines)
    if process.wait():
        error = directory / "error.bin"
        said = status_pb2.Status.FromString(error.read_bytes()).message if error.exists() else "see above"
        raise SystemExit(f"{directory.name} failed: {said}")


def _show(run: Run, lines: Iterator[str]) -> None:
    """Prints the validation metrics and, once a minute, the progress."""
    shown = time.monotonic()
    for line in lines:
        event = json.loads(line)
        if values := {k: v for k, v in event.get("metrics", {}).get("values", {}).items() if "validation" in k}:
            said = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            print(f"{run.name}  step {event['metrics']['step']}  {said}", flush=True)
        elif (progress := event.get("progress")) and time.monotonic() - shown > 60:
            shown = time.monotonic()
            left = progress.get("remaining_s", 0.0)
            print(
                f"{run.name}  {progress['stage']} {progress['step']}/{progress['total']}, {left:.0f} s left", flush=True
            )


def _int8(
    run: Run, task: Task, data: Path, test: pa.Table, instances: Sequence[Message], target: Path
) -> dict[str, Any]:
    """What the bundle's int8 form reaches and how fast both forms predict, whole predictions on one thread."""
    bundle, int8 = target / "bundle", target / "int8"
    shutil.copytree(bundle, int8, ignore=shutil.ignore_patterns(MODEL_FILE))
    train = datasets.load(data, ["train"])["train"]
    try:
        calibration = variants.calibration_batches(task, bundle, train, run.seed)
        note = quantise(bundle / MODEL_FILE, int8 / MODEL_FILE, calibration)
    except NotQuantisable as reason:
        return {"note": f"not applicable: {reason}"}
    float_ms, int8_ms = variants.latencies(task, [bundle, int8], instances)
    return {
        "note": note,
        "metric": task.score(test, evaluate.predict(task, int8, instances)).metrics[run.case.peers[0].metric],
        "float_ms": float_ms,
        "int8_ms": int8_ms,
        "float_bytes": (bundle / MODEL_FILE).stat().st_size,
        "int8_bytes": (int8 / MODEL_FILE).stat().st_size,
    }


def _said(message: Message) -> list[object]:
    """What a prediction says without its numbers of floating point: labels, texts, places, run lengths."""
    found: list[object] = []
    for field, value in message.ListFields():
        for one in value if field.is_repeated else [value]:
            if isinstance(one, Message):
                found += [field.name, _said(one)]
            elif not isinstance(one, float):
                found.append(one)
    return found
