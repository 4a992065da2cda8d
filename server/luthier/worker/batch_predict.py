"""BatchPredict: the served bundle, through its codec, over a part of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from luthier import bundle, datasets, names
from luthier.errors import FailedPrecondition
from luthier.task import Task
from luthier.v1 import batch_prediction_pb2
from luthier.worker import evaluate
from luthier.worker.job import Job, Publish

if TYPE_CHECKING:
    import pyarrow as pa


def work(job: Job) -> Publish:
    """Predicts for each example of the part that the request names, and keeps the predictions as JSON lines."""
    request: batch_prediction_pb2.BatchPredictRequest = job.request(batch_prediction_pb2.BatchPredictRequest)
    registry, store = job.tools.registry, job.tools.store
    version = registry.model_version(*registry.resolve(request.model, "model"))
    dataset = registry.dataset_version(names.parse_versioned("datasets", request.dataset, "dataset"))
    task = job.tools.plugins.task(version.task)
    examples = datasets.load(store.bring(store.dataset(dataset.digest)), [request.split])[request.split]
    if not examples.num_rows:
        raise FailedPrecondition(f"{dataset.name} has no examples in its {request.split} part")
    directory = store.bring(store.bundle(version.digest))
    bundle.verify(directory, version.digest)
    predictions = evaluate.predict(task, directory, task.instances(examples), job.progress, stage="predicting")
    content = b"".join(_lines(task, examples, predictions))
    made = batch_prediction_pb2.BatchPrediction(
        name=f"operations/{job.claim.operation}",
        model_version=version.name,
        dataset_version=dataset.name,
        split=request.split,
        num_predictions=len(predictions),
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )

    job.check()
    store.write(content, store.predictions(job.claim.operation))
    return lambda connection: made


def _lines(task: Task, examples: pa.Table, predictions: list[Message]) -> Iterator[bytes]:
    for rows, prediction in zip(task.rows(examples), predictions, strict=True):
        line = {
            "examples": [_without_bytes(example) for example in examples.take(rows).to_pylist()],
            "prediction": MessageToDict(prediction, preserving_proto_field_name=True),
        }
        yield json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _without_bytes(example: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in example.items() if not isinstance(value, bytes)}
