"""Requests that take more than their fields to make: what the synchronous and the asyncio client have in common."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from luthier.v1.access_pb2 import CreateTokenRequest, ListAuditEntriesRequest, Role
from luthier.v1.base_pb2 import ImportBaseRequest, ImportedFile, Preprocessing
from luthier.v1.batch_prediction_pb2 import BatchPredictRequest
from luthier.v1.dataset_pb2 import (
    CreateDatasetRequest,
    DatasetFile,
    FindUploadRequest,
    Split,
    Strictness,
    Upload,
    UploadHeader,
)
from luthier.v1.evaluation_pb2 import EvaluateRequest
from luthier.v1.model_pb2 import FineTuneFromFeedbackRequest, FineTuneRequest, Model, Quantization, Recording
from luthier.v1.monitoring_pb2 import GetDriftRequest
from luthier.v1.prediction_pb2 import PredictRequest, PredictResponse, RecordFeedbackRequest, RenderRequest
from luthier.v1.rollout_pb2 import RolloutRule, StartRolloutRequest, StopRolloutRequest
from luthier.v1.task_pb2 import Task, TaskMethod
from luthier_client import names
from luthier_client.errors import InvalidArgument, NotFound
from luthier_client.schema import Schema

PathLike = str | os.PathLike[str]
Files = PathLike | Mapping[str, PathLike | Sequence[PathLike]]
"""One file, or files by role: `train`, `validation`, `test`, `` (to be split), or a further role such as `titles`."""
Instance = Message | Mapping[str, Any]
"""A message of an instance type of the model's task, or its fields."""


Metadata = Sequence[tuple[str, str]]
"""What goes along with a call."""


class Predictions(list[Any]):
    """One prediction for each instance, in order; the name of the model version that made them, and what to name them
    by in feedback."""

    def __init__(self, response: PredictResponse, schema: Schema) -> None:
        super().__init__(schema.unpack(prediction) for prediction in response.predictions)
        self.model_version = response.model_version
        self.prediction_id = response.prediction_id


@dataclass(frozen=True)
class Rendered:
    """A prediction and its picture."""

    prediction: Any
    model_version: str
    picture: bytes
    media_type: str
    """`image/png` or `image/svg+xml`."""
    prediction_id: str
    """Names the prediction in feedback."""


def drift(model: str, window: timedelta, end: datetime | None) -> GetDriftRequest:
    """The request for a look at live predictions."""
    request = GetDriftRequest(model=names.model(model))
    request.window.FromTimedelta(window)
    if end is not None:
        request.end_time.FromDatetime(end)
    return request


def fine_tune_from_feedback(
    model: str,
    *,
    dataset_id: str,
    since: datetime | None,
    until: datetime | None,
    feedback_only: bool,
    config: AnyMessage | None,
    seed: int,
    parity_tolerance: float | None,
    int8: bool,
    int8_tolerance: float | None,
) -> FineTuneFromFeedbackRequest:
    """The request for a fine-tune on live predictions."""
    request = FineTuneFromFeedbackRequest(
        model=names.model(model),
        dataset_id=dataset_id,
        feedback_only=feedback_only,
        config=config,
        seed=seed,
        request_id=request_id(),
        parity_tolerance=parity_tolerance,
        quantization=_quantization(int8, int8_tolerance),
    )
    if since is not None:
        request.since.FromDatetime(since)
    if until is not None:
        request.until.FromDatetime(until)
    return request


def request_id() -> str:
    """A fresh id, under which a retried call is known as the same."""
    return uuid.uuid4().hex


def files_by_role(files: Files) -> list[tuple[str, Path]]:
    """(role, path) for each file."""
    if not isinstance(files, Mapping):
        return [("", Path(files))]
    return [
        (role, Path(path))
        for role, paths in files.items()
        for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)
    ]


def create_dataset(
    dataset_id: str,
    uploads: Sequence[tuple[str, Upload]],
    *,
    task: str,
    format: str,
    columns: Mapping[str, str] | None,
    no_header: bool,
    split: Split | None,
    options: Mapping[str, str] | None,
    strictness: Strictness.ValueType,
) -> CreateDatasetRequest:
    """The request for a data set of uploaded files, given with their roles."""
    return CreateDatasetRequest(
        dataset_id=dataset_id,
        task=task,
        files=[DatasetFile(upload=upload.name, role=role) for role, upload in uploads],
        format=format,
        columns=columns,
        no_header=no_header,
        split=split,
        request_id=request_id(),
        options=options,
        strictness=strictness,
    )


def import_base(
    base_id: str,
    weights: Upload,
    files: Mapping[str, Upload],
    *,
    architecture: str,
    tasks: Sequence[str],
    title: str,
    license: str,
    preprocessing: Preprocessing | None,
    languages: Sequence[str],
) -> ImportBaseRequest:
    """The request for a base of uploaded files, those besides the weights by their paths within the base."""
    return ImportBaseRequest(
        base_id=base_id,
        architecture=architecture,
        weights=weights.name,
        files=[ImportedFile(path=path, upload=upload.name) for path, upload in files.items()],
        tasks=tasks,
        title=title,
        license=license,
        preprocessing=preprocessing,
        languages=languages,
        request_id=request_id(),
    )


def fine_tune(
    model_id: str,
    *,
    task: str,
    dataset: str,
    base: str,
    config: AnyMessage | None,
    seed: int,
    parity_tolerance: float | None,
    int8: bool,
    int8_tolerance: float | None,
) -> FineTuneRequest:
    """The request for a fine-tune."""
    return FineTuneRequest(
        model_id=model_id,
        task=task,
        dataset=names.dataset(dataset),
        base=names.base(base) if base else "",
        config=config,
        seed=seed,
        request_id=request_id(),
        parity_tolerance=parity_tolerance,
        quantization=_quantization(int8, int8_tolerance),
    )


def _quantization(int8: bool, tolerance: float | None) -> Quantization | None:
    return Quantization(tolerance=tolerance) if int8 or tolerance is not None else None


def find_upload(header: UploadHeader) -> FindUploadRequest:
    """The request for how much the server holds of a file."""
    return FindUploadRequest(sha256=header.sha256)


def evaluate(model: str, *, dataset: str, split: str) -> EvaluateRequest:
    """The request for an evaluation."""
    return EvaluateRequest(
        model=names.model(model), dataset=names.dataset(dataset), split=split, request_id=request_id()
    )


def batch_predict(model: str, *, dataset: str, split: str) -> BatchPredictRequest:
    """The request for predictions for a part of a data set."""
    return BatchPredictRequest(
        model=names.model(model), dataset=names.dataset(dataset), split=split, request_id=request_id()
    )


def predict(model: str, instances: Sequence[Instance], method: TaskMethod | None, schema: Schema) -> PredictRequest:
    """The request for predictions; instances given by their fields become messages of the method's instance type."""
    type_name = method.instance_type if method else ""
    packed = [schema.pack(instance, type_name, f"instances[{i}]") for i, instance in enumerate(instances)]
    return PredictRequest(model=model, instances=packed)


def render(model: str, instance: Instance, method: TaskMethod | None, schema: Schema) -> RenderRequest:
    """The request for a drawn prediction."""
    packed = schema.pack(instance, method.instance_type if method else "", "instance")
    return RenderRequest(model=model, instance=packed)


def metadata(key: str, record: str) -> Metadata:
    """What a call says of itself to rollouts and the journal."""
    return [(name, value) for name, value in (("luthier-key", key), ("luthier-record", record)) if value]


def start_rollout(
    model: str,
    candidate: int | None,
    percent: float,
    shadows: Sequence[int],
    rule: RolloutRule | None,
    recording: Recording | None,
) -> StartRolloutRequest:
    """The request for a rollout; a bare model stands for its alias `production`."""
    return StartRolloutRequest(
        alias=names.model(model if "@" in model or "/aliases/" in model else f"{model}@{names.PRODUCTION}"),
        candidate=names.version(model, candidate) if candidate is not None else "",
        percent=percent,
        shadows=[names.version(model, number) for number in shadows],
        rule=rule,
        recording=recording,
    )


def stop_rollout(rollout: str, *, promote: bool, reason: str) -> StopRolloutRequest:
    """The request for a rollout's end."""
    outcome = StopRolloutRequest.OUTCOME_PROMOTE if promote else StopRolloutRequest.OUTCOME_ROLL_BACK
    return StopRolloutRequest(name=names.resource("rollouts", rollout), outcome=outcome, reason=reason)


def record_feedback(
    prediction_id: str, index: int, labels: Sequence[Instance], example_type: str, schema: Schema
) -> RecordFeedbackRequest:
    """The request that says what was true; labels given by their fields become messages of the example type."""
    packed = [schema.pack(label, example_type, f"labels[{i}]") for i, label in enumerate(labels)]
    return RecordFeedbackRequest(prediction_id=prediction_id, index=index, labels=packed)


def needs_method(instances: Sequence[Instance]) -> bool:
    """Whether any instance is given by its fields alone, so that its type must be looked up."""
    return any(not isinstance(instance, Message) for instance in instances)


def find_method(task: Task, name: str) -> TaskMethod:
    """A method of a task's service by name, or its first; raises InvalidArgument naming those there are."""
    for method in task.methods:
        if name in ("", method.method):
            return method
    known = ", ".join(method.method for method in task.methods)
    raise InvalidArgument(f"{task.name} has no method {name}", violations={"method": f"{name} is not one of {known}"})


def find_version(model: Model, resource: str) -> str:
    """The version that an alias of a model, or its bare name, stands for; raises NotFound."""
    wanted = resource if resource != model.name else names.alias(resource, names.PRODUCTION)
    for alias in model.aliases:
        if alias.name == wanted:
            return str(alias.model_version)
    raise NotFound(f"{wanted} was not found")


def create_token(
    principal: str,
    *,
    role: Role.ValueType,
    models: Sequence[str],
    datasets: Sequence[str],
    expire_time: datetime | None,
) -> CreateTokenRequest:
    """Request of CreateToken."""
    request = CreateTokenRequest(principal=principal, role=role, models=models, datasets=datasets)
    if expire_time is not None:
        request.expire_time.FromDatetime(expire_time)
    return request


def list_audit_entries(
    *, principal: str, method: str, resource: str, start_time: datetime | None
) -> ListAuditEntriesRequest:
    """Request of ListAuditEntries."""
    request = ListAuditEntriesRequest(principal=principal, method=method, resource=resource)
    if start_time is not None:
        request.start_time.FromDatetime(start_time)
    return request
