"""Evaluate, and the scoring that a fine-tune uses too: always the served bundle, through its codec, without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from google.protobuf.message import Message

from luthier import bundle, datasets, names
from luthier.datasets import Report
from luthier.errors import FailedPrecondition
from luthier.inference.predictor import Predictor
from luthier.task import Task
from luthier.v1 import evaluation_pb2
from luthier.worker import report
from luthier.worker.job import Job, Publish

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 64


def work(job: Job) -> Publish:
    """Scores the version that the request names on a part of a data set."""
    request: evaluation_pb2.EvaluateRequest = job.request(evaluation_pb2.EvaluateRequest)
    registry, store = job.tools.registry, job.tools.store
    model, number = registry.resolve(request.model, "model")
    version = registry.model_version(model, number)
    dataset = registry.dataset_version(names.parse_versioned("datasets", request.dataset, "dataset"))
    task = job.tools.plugins.task(version.task)
    split = request.split or "test"
    examples = datasets.load(store.bring(store.dataset(dataset.digest)), [split])[split]
    if not examples.num_rows:
        raise FailedPrecondition(f"{dataset.name} has no examples in its {split} part")
    directory = store.bring(store.bundle(version.digest))
    bundle.verify(directory, version.digest)
    predictions = predict(task, directory, task.instances(examples), job.progress)
    evaluation = task.score(examples, predictions)
    evaluation.model_version, evaluation.dataset_version, evaluation.split = version.name, dataset.name, split
    draft = report.prepare(job, task, registry.operation_of(model, number), examples, predictions)

    def record(connection: sa.Connection) -> Message:
        registry.add_evaluation(connection, job.claim.operation, evaluation)
        report.keep(job, draft, version, evaluation)
        return evaluation

    return record


def predict(
    task: Task,
    directory: Path,
    instances: Sequence[Message],
    report: Report = lambda stage, done, total: None,
    stage: str = "evaluating",
) -> list[Message]:
    """Predicts for many instances on all cores, of like sizes together so that little is padded."""
    predictor = Predictor(task, directory, threads=len(os.sched_getaffinity(0)))
    order = sorted(range(len(instances)), key=lambda index: instances[index].ByteSize())
    predictions: list[Message | None] = [None] * len(instances)
    for start in range(0, len(order), BATCH):
        report(stage, start, len(order))
        chosen = order[start : start + BATCH]
        for index, prediction in zip(chosen, predictor.predict([instances[i] for i in chosen]), strict=True):
            predictions[index] = prediction
    return [prediction for prediction in predictions if prediction is not None]


def score_rows(task: Task, examples: pa.Table, predictions: Sequence[Message]) -> float:
    """The primary metric alone."""
    return task.score(examples, predictions).metrics[task.primary_metric]


def shortfall(task: Task, reference: float, value: float) -> float:
    """How far a value of the primary metric falls behind another; below 0 where it is better."""
    return value - reference if task.lower_is_better else reference - value
