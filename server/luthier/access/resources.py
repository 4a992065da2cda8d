"""Which operations, evaluations, rollouts and predictions a principal with a scope may name: those that it could have
asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from luthier.access.policy import RULES, Named
from luthier.access.principal import Principal
from luthier.database import Database, evaluations, operations, predictions, rollouts
from luthier.v1 import base_pb2, batch_prediction_pb2, dataset_pb2, evaluation_pb2, model_pb2
from luthier.v1.operation_pb2 import OperationMetadata

_STARTED_BY: Mapping[int, tuple[type[Message], str]] = {
    OperationMetadata.KIND_CREATE_DATASET: (dataset_pb2.CreateDatasetRequest, "DatasetService/CreateDataset"),
    OperationMetadata.KIND_FINE_TUNE: (model_pb2.FineTuneRequest, "ModelService/FineTune"),
    OperationMetadata.KIND_FINE_TUNE_FROM_FEEDBACK: (
        model_pb2.FineTuneFromFeedbackRequest,
        "ModelService/FineTuneFromFeedback",
    ),
    OperationMetadata.KIND_EVALUATE: (evaluation_pb2.EvaluateRequest, "EvaluationService/Evaluate"),
    OperationMetadata.KIND_PULL_BASE: (base_pb2.PullBaseRequest, "BaseService/PullBase"),
    OperationMetadata.KIND_IMPORT_BASE: (base_pb2.ImportBaseRequest, "BaseService/ImportBase"),
    OperationMetadata.KIND_BATCH_PREDICT: (
        batch_prediction_pb2.BatchPredictRequest,
        "BatchPredictionService/BatchPredict",
    ),
}
"""Of each kind of operation, what it was asked for by. One of another kind is its owner's alone."""


class Resources:
    """Looks them up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def may(self, principal: Principal, named: Sequence[Named]) -> list[bool]:
        """Whether a principal may name each of some resources. What is not there, anybody may."""
        ids: dict[str, list[str]] = defaultdict(list)
        for each in named:
            ids[each.kind].append(each.id)
        found: dict[tuple[str, str], bool] = {}
        with self._database.read() as connection:
            for row in _rows(connection, operations, ids["operation"]):
                found["operation", row.id] = _could_have_started(principal, row)
            for row in _rows(connection, evaluations, ids["evaluation"]):
                found["evaluation", row.id] = principal.models.has(row.model) and principal.datasets.has(row.dataset)
            for row in _rows(connection, rollouts, ids["rollout"]):
                found["rollout", row.id] = principal.models.has(row.model)
            for row in _rows(connection, predictions, ids["prediction"]):
                found["prediction", row.id] = principal.models.has(row.version.split("/")[1])
        return [found.get((each.kind, each.id), True) for each in named]


def _rows(connection: sa.Connection, table: sa.Table, ids: Sequence[str]) -> Sequence[sa.Row[tuple[Any, ...]]]:
    # What is no id is not there; some databases do not even take it.
    asked = [id for id in ids if id.isprintable()]
    return connection.execute(sa.select(table).where(table.c.id.in_(asked))).all() if asked else []


def _could_have_started(principal: Principal, row: sa.Row[tuple[Any, ...]]) -> bool:
    if row.principal == principal.name:
        return True
    if row.kind not in _STARTED_BY:
        return False
    kind, method = _STARTED_BY[row.kind]
    scopes = {"model": principal.models, "dataset": principal.datasets}
    named = RULES[f"/luthier.v1.{method}"].named(kind.FromString(row.request))
    return all(scopes[each.kind].has(each.id) for each in named)
