"""The numeric forms of an exported model, measured side by side, and which of them is served."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import Message

from luthier import datasets
from luthier.datasets import Report
from luthier.errors import LuthierError
from luthier.inference.predictor import Predictor
from luthier.task import MODEL_FILE, Task
from luthier.v1 import model_pb2
from luthier.worker import evaluate
from luthier.worker.job import Job
from luthier.worker.quantize import Batch, NotQuantisable, quantise

if TYPE_CHECKING:
    import pyarrow as pa

log = structlog.get_logger()

TOLERANCE = 0.01
"""How far the primary metric of int8 may fall behind that of float32 where the request does not say."""
CALIBRATION_EXAMPLES = 128
"""Most examples of train that ranges of activations are taken from."""
CALIBRATION_BATCH = 8
TIMED_INSTANCES = 50
"""Most instances that each form predicts, one at a time, to be timed."""
WARM_UP = 5
"""How many of them are predicted before, not timed."""

TOGETHER = (1, 2, 4, 8, 16, 32)
"""Numbers of instances that are timed together."""
TIMED_TURNS = 5
LONGEST_S = 0.5
"""More instances are not tried once so many take this long together: nobody is to wait longer for others."""
LEAST_GAIN = 0.15
"""Share of an instance's time that has to be saved by computing it together with others."""
LEAST_GAIN_MS = 0.1
"""And the time: putting calls together and waking them takes about as long."""


@dataclass(frozen=True)
class Form:
    """A whole bundle in one numeric form, and what it predicts for the examples of the parity measurement."""

    name: str
    directory: Path
    predictions: list[Message]
    metric: float
    note: str = ""
    """How it was made."""


def choose(
    job: Job, task: Task, request: model_pb2.FineTuneRequest, data: Path, examples: pa.Table, float32: Form
) -> tuple[Form, list[model_pb2.Variant]]:
    """The form to serve, and what is recorded of each. int8 is made where the request asks, served where it is good."""
    served, forms, notes = float32, [float32], {}
    if request.HasField("quantization"):
        try:
            int8 = _int8(job, task, request.seed, data, examples, float32)
        except NotQuantisable as reason:
            notes["int8"] = f"not applicable: {reason}"
        else:
            forms.append(int8)
            refusal = _refusal(task, request.quantization, float32, int8)
            notes["int8"] = f"{int8.note}; not served: {refusal}" if refusal else int8.note
            served = float32 if refusal else int8
    job.progress("timing", 0, 1)
    milliseconds = latencies(task, [form.directory for form in forms], task.instances(examples))
    variants = {
        form.name: model_pb2.Variant(
            name=form.name,
            size_bytes=(form.directory / MODEL_FILE).stat().st_size,
            latency_ms=latency,
            metric=form.metric,
            served=form is served,
        )
        for form, latency in zip(forms, milliseconds, strict=True)
    }
    for name, note in notes.items():
        variants.setdefault(name, model_pb2.Variant(name=name)).note = note
    return served, list(variants.values())


def _refusal(task: Task, quantization: model_pb2.Quantization, float32: Form, int8: Form) -> str:
    """Why int8 may not be served; empty where it may."""
    tolerance = quantization.tolerance if quantization.HasField("tolerance") else TOLERANCE
    loss = evaluate.shortfall(task, float32.metric, int8.metric)
    # A metric that is not a number compares as false, and must not pass for that.
    if loss <= tolerance:
        return ""
    return f"it loses {loss:.4f} of {task.primary_metric}, where {tolerance:g} is allowed"


def _int8(job: Job, task: Task, seed: int, data: Path, examples: pa.Table, float32: Form) -> Form:
    """Makes the int8 form of the bundle in a folder beside it."""
    directory = job.directory / "int8"
    shutil.copytree(float32.directory, directory, ignore=shutil.ignore_patterns(MODEL_FILE))
    calibration = calibration_batches(
        task, float32.directory, datasets.load(data, ["train"])["train"], seed, job.progress
    )
    try:
        note = quantise(float32.directory / MODEL_FILE, directory / MODEL_FILE, calibration)
        predictions = evaluate.predict(task, directory, task.instances(examples), job.progress)
    except (LuthierError, NotQuantisable, MemoryError):
        raise
    except Exception as error:  # Any graph may come from a plugin; one the quantiser fails on is still good in float32.
        log.warning("quantisation failed", operation=job.claim.operation, exc_info=error)
        raise NotQuantisable(f"onnxruntime failed on the graph ({type(error).__name__}); the log says more") from error
    return Form("int8", directory, predictions, evaluate.score_rows(task, examples, predictions), note)


def calibration_batches(
    task: Task, directory: Path, train: pa.Table, seed: int, report: Report = lambda stage, done, total: None
) -> Iterator[Batch]:
    """Inputs of a bundle's graph for examples of train, drawn by the seed."""
    codec = task.open(directory)
    rows = random.Random(seed).sample(range(train.num_rows), min(train.num_rows, CALIBRATION_EXAMPLES))
    instances = task.instances(train.take(sorted(rows)))
    for start in range(0, len(instances), CALIBRATION_BATCH):
        report("calibrating int8", start, len(instances))
        yield codec.encode(instances[start : start + CALIBRATION_BATCH])


def latencies(task: Task, bundles: Sequence[Path], instances: Sequence[Message]) -> list[float]:
    """Median milliseconds of one prediction on one thread, by turns, so that a busy moment falls on all forms alike."""
    predictors = [Predictor(task, directory) for directory in bundles]
    timed = instances[:: max(1, len(instances) // TIMED_INSTANCES)][:TIMED_INSTANCES]
    seconds: list[list[float]] = [[] for _ in bundles]
    for instance in [*timed[:WARM_UP], *timed]:
        for predictor, taken in zip(predictors, seconds, strict=True):
            started = time.perf_counter()
            predictor.predict([instance])
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken[-len(timed) :]) * 1000 for taken in seconds]


def measure(task: Task, directory: Path, instances: Sequence[Message]) -> model_pb2.Serving:
    """Times several instances at once, and settles how many calls are put together."""
    predictor = Predictor(task, directory)
    predictor.predict(instances[:1])
    timings = []
    for rows in TOGETHER:
        taken = []
        for turn in range(TIMED_TURNS):
            first = turn * rows
            together = [instances[(first + i) % len(instances)] for i in range(rows)]
            started = time.perf_counter()
            predictor.predict(together)
            taken.append(time.perf_counter() - started)
        median_s = statistics.median(taken)
        timings.append(model_pb2.Serving.Timing(rows=rows, milliseconds=median_s * 1000))
        if median_s > LONGEST_S:
            break
    return model_pb2.Serving(most_rows=most_rows(timings), timings=timings)


def most_rows(timings: Sequence[model_pb2.Serving.Timing]) -> int:
    """The number of instances that are quickest together, each; 1 where that saves too little to be worth it."""
    alone = timings[0].milliseconds
    best = min(timings, key=lambda timing: timing.milliseconds / timing.rows)
    saved = alone - best.milliseconds / best.rows
    return best.rows if saved > max(LEAST_GAIN_MS, LEAST_GAIN * alone) else 1
