"""EvaluationService."""

from __future__ import annotations

import grpc
from google.longrunning import operations_pb2

from luthier import names, paging
from luthier.errors import InvalidArgument
from luthier.operations import Operations
from luthier.registry import Registry
from luthier.task import PARTS
from luthier.v1 import evaluation_pb2, evaluation_pb2_grpc
from luthier.v1.operation_pb2 import OperationMetadata


class EvaluationService(evaluation_pb2_grpc.EvaluationServiceServicer):
    """Scores of served bundles."""

    def __init__(self, registry: Registry, operations: Operations) -> None:
        self._registry = registry
        self._operations = operations

    def Evaluate(
        self, request: evaluation_pb2.EvaluateRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        """Pins model and data set, and queues the work."""
        if before := self._operations.repeated(OperationMetadata.KIND_EVALUATE, request):
            return before
        model, number = self._registry.resolve(request.model, "model")
        version = self._registry.model_version(model, number)
        dataset = self._registry.dataset_version(names.parse_versioned("datasets", request.dataset, "dataset"))
        split = request.split or "test"
        if split not in PARTS:
            raise InvalidArgument({"split": f"{split!r} is none of {', '.join(PARTS)}"})
        if dataset.task != version.task:
            raise InvalidArgument({"dataset": f"{dataset.name} is of the task {dataset.task}, not {version.task}"})
        full = evaluation_pb2.EvaluateRequest(model=version.name, dataset=dataset.name, split=split)
        return self._operations.submit(OperationMetadata.KIND_EVALUATE, version.name, request, full)

    def GetEvaluation(
        self, request: evaluation_pb2.GetEvaluationRequest, context: grpc.ServicerContext
    ) -> evaluation_pb2.Evaluation:
        """One evaluation."""
        return self._registry.evaluation(names.parse("evaluations/{evaluation}", request.name)[0])

    def ListEvaluations(
        self, request: evaluation_pb2.ListEvaluationsRequest, context: grpc.ServicerContext
    ) -> evaluation_pb2.ListEvaluationsResponse:
        """A page, newest first."""
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token)
        found = self._registry.evaluations(
            names.parse_versioned("models", request.model, "model") if request.model else None,
            names.parse_versioned("datasets", request.dataset, "dataset") if request.dataset else None,
            (key[0], key[1]) if key else None,
            size + 1,
        )
        token = paging.token_of(found[size - 1][0], found[size - 1][1]) if len(found) > size else ""
        return evaluation_pb2.ListEvaluationsResponse(
            evaluations=[evaluation for _, _, evaluation in found[:size]], next_page_token=token
        )
