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

SLOWER_BY, SLOWER_BY_MS = 0.1, 0.1
"""int8 is not served where it takes longer than float32 by more than this share and by more than so many milliseconds.
Where it takes about as long, it is still a quarter of the size."""


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
            forms.append(_int8(job, task, request.seed, data, examples, float32))
        except NotQuantisable as reason:
            notes["int8"] = f"not applicable: {reason}"
    job.progress("timing", 0, 1)
    milliseconds = latencies(task, [form.directory for form in forms], task.instances(examples))
    if len(forms) > 1:
        int8 = forms[1]
        refusal = _refusal(task, request.quantization, float32, int8, milliseconds)
        notes["int8"] = f"{int8.note}; not served: {refusal}" if refusal else int8.note
        served = float32 if refusal else int8
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


def _refusal(
    task: Task, quantization: model_pb2.Quantization, float32: Form, int8: Form, milliseconds: Sequence[float]
) -> str:
    """Why int8 may not be served, given what a prediction by float32 and by int8 takes; empty where it may."""
    tolerance = quantization.tolerance if quantization.HasField("tolerance") else TOLERANCE
    loss = evaluate.shortfall(task, float32.metric, int8.metric)
    # A metric that is not a number compares as false, and must not pass for that.
    if not loss <= tolerance:
        return f"it loses {loss:.4f} of {task.primary_metric}, where {tolerance:g} is allowed"
    float32_ms, int8_ms = milliseconds
    if int8_ms - float32_ms > max(SLOWER_BY_MS, SLOWER_BY * float32_ms):
        return f"a prediction takes {int8_ms:.2f} ms, and {float32_ms:.2f} ms in float32"
    return ""


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
