"""EvaluationService."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.longrunning import operations_pb2

from luthier import names, paging
from luthier.errors import NotFound
from luthier.operations import Operations
from luthier.registry import Registry
from luthier.services.requests import chunks_of, pinned
from luthier.store import Store
from luthier.v1 import evaluation_pb2, evaluation_pb2_grpc
from luthier.v1.operation_pb2 import OperationMetadata


class EvaluationService(evaluation_pb2_grpc.EvaluationServiceServicer):
    """Scores of served bundles."""

    def __init__(self, registry: Registry, store: Store, operations: Operations) -> None:
        self._registry = registry
        self._store = store
        self._operations = operations

    def Evaluate(
        self, request: evaluation_pb2.EvaluateRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        """Pins model and data set, and queues the work."""
        if before := self._operations.repeated(OperationMetadata.KIND_EVALUATE, request):
            return before
        full = pinned(self._registry, request)
        return self._operations.submit(OperationMetadata.KIND_EVALUATE, full.model, request, full)

    def GetEvaluation(
        self, request: evaluation_pb2.GetEvaluationRequest, context: grpc.ServicerContext
    ) -> evaluation_pb2.Evaluation:
        """One evaluation."""
        return self._registry.evaluation(names.parse("evaluations/{evaluation}", request.name)[0])

    def ListEvaluations(
        self, request: evaluation_pb2.ListEvaluationsRequest, context: grpc.ServicerContext
    ) -> evaluation_pb2.ListEvaluationsResponse:
        """A page, newest first. Curves are left out: with those of a hundred evaluations a page would be megabytes."""
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, float, str)
        found = self._registry.evaluations(
            names.parse_versioned("models", request.model, "model") if request.model else None,
            names.parse_versioned("datasets", request.dataset, "dataset") if request.dataset else None,
            (key[0], key[1]) if key else None,
            size + 1,
        )
        token = paging.token_of(found[size - 1][0], found[size - 1][1]) if len(found) > size else ""
        for _, _, evaluation in found:
            evaluation.ClearField("curves")
        return evaluation_pb2.ListEvaluationsResponse(
            evaluations=[evaluation for _, _, evaluation in found[:size]], next_page_token=token
        )

    def DownloadReport(
        self, request: evaluation_pb2.DownloadReportRequest, context: grpc.ServicerContext
    ) -> Iterator[evaluation_pb2.DownloadReportResponse]:
        """Sends the report's file."""
        id = names.parse("evaluations/{evaluation}", request.name)[0]
        self._registry.evaluation(id)
        try:
            file = self._store.bring(self._store.report(id)).open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"{request.name}/report", "the evaluation was made without one; evaluate again") from error
        for chunk in chunks_of(file):
            yield evaluation_pb2.DownloadReportResponse(chunk=chunk)
