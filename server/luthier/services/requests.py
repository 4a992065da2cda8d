"""What several services do with their requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TypeVar

from luthier import names
from luthier.errors import InvalidArgument
from luthier.registry import Registry
from luthier.task import PARTS
from luthier.v1.batch_prediction_pb2 import BatchPredictRequest
from luthier.v1.evaluation_pb2 import EvaluateRequest

R = TypeVar("R", EvaluateRequest, BatchPredictRequest)

_CHUNK_BYTES = 512 * 1024


def pinned(registry: Registry, request: R) -> R:
    """The same request for the versions of model and data set that it means at present; InvalidArgument, NotFound."""
    model, number = registry.resolve(request.model, "model")
    version = registry.model_version(model, number)
    dataset = registry.dataset_version(names.parse_versioned("datasets", request.dataset, "dataset"))
    split = request.split or "test"
    if split not in PARTS:
        raise InvalidArgument({"split": f"{split!r} is none of {', '.join(PARTS)}"})
    if dataset.task != version.task:
        raise InvalidArgument({"dataset": f"{dataset.name} is of the task {dataset.task}, not {version.task}"})
    return type(request)(model=version.name, dataset=dataset.name, split=split)


def chunks_of(file: IO[bytes]) -> Iterator[bytes]:
    """A file's bytes in parts that fit into messages; closes it."""
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
