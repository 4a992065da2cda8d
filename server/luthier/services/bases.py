"""BaseService."""

from __future__ import annotations

import grpc
from google.longrunning import operations_pb2

from luthier import bases, names, paging
from luthier.operations import Operations
from luthier.store import Store
from luthier.v1 import base_pb2, base_pb2_grpc
from luthier.v1.operation_pb2 import OperationMetadata


class BaseService(base_pb2_grpc.BaseServiceServicer):
    """The catalogue."""

    def __init__(self, catalogue: bases.Catalogue, store: Store, operations: Operations) -> None:
        self._catalogue = catalogue
        self._store = store
        self._operations = operations

    def ListBases(
        self, request: base_pb2.ListBasesRequest, context: grpc.ServicerContext
    ) -> base_pb2.ListBasesResponse:
        """A page, in the catalogue's order."""
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token)
        start = key[0] if key else 0
        entries = [e for e in self._catalogue.entries.values() if not request.task or request.task in e.tasks]
        return base_pb2.ListBasesResponse(
            bases=[bases.proto(entry, self._store.bases) for entry in entries[start : start + size]],
            next_page_token=paging.token_of(start + size) if len(entries) > start + size else "",
        )

    def GetBase(self, request: base_pb2.GetBaseRequest, context: grpc.ServicerContext) -> base_pb2.Base:
        """One entry."""
        return bases.proto(self._catalogue.get(names.parse("bases/{base}", request.name)[0]), self._store.bases)

    def PullBase(self, request: base_pb2.PullBaseRequest, context: grpc.ServicerContext) -> operations_pb2.Operation:
        """Queues a pull."""
        self._catalogue.get(names.parse("bases/{base}", request.name)[0])
        return self._operations.submit(OperationMetadata.KIND_PULL_BASE, request.name, request)
