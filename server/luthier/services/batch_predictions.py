"""BatchPredictionService."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.longrunning import operations_pb2

from luthier import names
from luthier.errors import FailedPrecondition, NotFound
from luthier.operations import Operations
from luthier.registry import Registry
from luthier.services.requests import chunks_of, pinned
from luthier.store import Store
from luthier.v1 import batch_prediction_pb2, batch_prediction_pb2_grpc
from luthier.v1.operation_pb2 import OperationMetadata


class BatchPredictionService(batch_prediction_pb2_grpc.BatchPredictionServiceServicer):
    """Predictions for whole parts of data sets."""

    def __init__(self, registry: Registry, store: Store, operations: Operations) -> None:
        self._registry = registry
        self._store = store
        self._operations = operations

    def BatchPredict(
        self, request: batch_prediction_pb2.BatchPredictRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        """Pins model and data set, and queues the work."""
        if before := self._operations.repeated(OperationMetadata.KIND_BATCH_PREDICT, request):
            return before
        full = pinned(self._registry, request)
        return self._operations.submit(OperationMetadata.KIND_BATCH_PREDICT, full.model, request, full)

    def DownloadPredictions(
        self, request: batch_prediction_pb2.DownloadPredictionsRequest, context: grpc.ServicerContext
    ) -> Iterator[batch_prediction_pb2.DownloadPredictionsResponse]:
        """Sends the file."""
        id = names.parse("operations/{operation}", request.name)[0]
        operation = self._operations.get(id)
        if not operation.response.Is(batch_prediction_pb2.BatchPrediction.DESCRIPTOR):
            raise FailedPrecondition(f"{request.name} is no batch prediction that has come to its end")
        try:
            file = self._store.bring(self._store.predictions(id)).open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"{request.name}/predictions", "its file is gone; predict again") from error
        for chunk in chunks_of(file):
            yield batch_prediction_pb2.DownloadPredictionsResponse(chunk=chunk)
