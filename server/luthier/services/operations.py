"""google.longrunning.Operations, and the stream of events beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.empty_pb2 import Empty

from luthier import names, paging
from luthier.errors import InvalidArgument, Unavailable
from luthier.operations import Operations, to_proto
from luthier.revisions import Revisions
from luthier.store import Store
from luthier.v1 import operation_pb2, operation_pb2_grpc

_WAIT_S = 5.0
"""Seconds after which a silent stream looks whether its caller is still there."""


class LongRunningService(operations_pb2_grpc.OperationsServicer):
    """Standard polling."""

    def __init__(self, operations: Operations, store: Store, revisions: Revisions) -> None:
        self._operations = operations
        self._store = store
        self._revisions = revisions

    def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        """One operation."""
        return self._operations.get(_id(request.name))

    def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: grpc.ServicerContext
    ) -> operations_pb2.ListOperationsResponse:
        """A page, newest first."""
        violations = {}
        if request.name not in ("", "operations"):
            violations["name"] = "operations have no parent; leave it out"
        if request.filter:
            violations["filter"] = "nothing is filtered; leave it out"
        if violations:
            raise InvalidArgument(violations)
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, float, str)
        rows = self._operations.page((key[0], key[1]) if key else None, size + 1)
        token = paging.token_of(rows[size - 1].create_time, rows[size - 1].id) if len(rows) > size else ""
        return operations_pb2.ListOperationsResponse(
            operations=[to_proto(row) for row in rows[:size]], next_page_token=token
        )

    def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: grpc.ServicerContext) -> Empty:
        """Asks for an end."""
        self._operations.cancel(_id(request.name))
        return Empty()

    def DeleteOperation(self, request: operations_pb2.DeleteOperationRequest, context: grpc.ServicerContext) -> Empty:
        """Forgets one that has ended, and its predictions."""
        id = _id(request.name)
        self._operations.delete(id)
        self._store.remove(self._store.predictions(id))
        return Empty()

    def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        """Returns once the operation has ended, or its state after `timeout`."""
        id = _id(request.name)
        # By its parts: protobuf's own conversions raise for durations that are out of their range.
        limit = request.timeout.seconds + request.timeout.nanos / 1e9 if request.HasField("timeout") else math.inf
        deadline = time.monotonic() + min(limit, context.time_remaining() or 60.0)
        while True:
            seen = self._revisions.operations()
            operation = self._operations.get(id)
            left = deadline - time.monotonic()
            if operation.done or left <= 0 or self._revisions.stopped or not context.is_active():
                return operation
            self._revisions.wait(seen, min(left, _WAIT_S))


class OperationService(operation_pb2_grpc.OperationServiceServicer):
    """Events as they come, and a rest."""

    def __init__(self, operations: Operations, revisions: Revisions) -> None:
        self._operations = operations
        self._revisions = revisions

    def WatchOperation(
        self, request: operation_pb2.WatchOperationRequest, context: grpc.ServicerContext
    ) -> Iterator[operation_pb2.OperationEvent]:
        """Sends events from a sequence number on, until the last."""
        id, sequence = _id(request.name), request.after_sequence
        while context.is_active() and not self._revisions.stopped:
            seen = self._revisions.operations()
            # Asked before the events are read: what ends in between is sent on the next round.
            ended = self._operations.get(id).done
            for event in self._operations.events(id, sequence):
                yield event
                sequence = event.sequence
                if event.HasField("done"):
                    return
            if ended:
                return
            self._revisions.wait(seen, _WAIT_S)
        raise Unavailable("the server is shutting down; watch on from the last sequence number")

    def PauseOperation(
        self, request: operation_pb2.PauseOperationRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        """Holds one that has not ended."""
        return self._operations.pause(_id(request.name))

    def ResumeOperation(
        self, request: operation_pb2.ResumeOperationRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        """Puts one that is held back into the queue."""
        return self._operations.resume(_id(request.name))


def _id(name: str) -> str:
    return names.parse("operations/{operation}", name)[0]
