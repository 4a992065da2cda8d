# ruff: noqa: N802 -- the proto names the methods
"""Watching and waiting, with a server that breaks off."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from google.rpc import code_pb2, status_pb2

from inprocess import serving
from luthier.v1 import operation_pb2_grpc
from luthier.v1.model_pb2 import ModelVersion
from luthier.v1.operation_pb2 import Metrics, OperationEvent, OperationMetadata, WatchOperationRequest
from luthier_client import AsyncClient, Client, errors

NAME = "operations/1"


def finished(error: int = 0) -> operations_pb2.Operation:
    operation = operations_pb2.Operation(name=NAME, done=True)
    if error:
        operation.error.CopyFrom(status_pb2.Status(code=error, message="no room"))
    else:
        operation.response.Pack(ModelVersion(name="models/beer/versions/1"))
    return operation


def story(end: operations_pb2.Operation) -> list[OperationEvent]:
    return [
        OperationEvent(sequence=1, state=OperationMetadata.STATE_RUNNING),
        *(OperationEvent(sequence=step, metrics=Metrics(step=step)) for step in range(2, 10)),
        OperationEvent(sequence=10, done=end),
    ]


Abort = Callable[[grpc.ServicerContext], None]


class Server(operation_pb2_grpc.OperationServiceServicer, operations_pb2_grpc.OperationsServicer):
    """Tells a story, and at the first `breaks` calls stops after three events in the way of `abort`."""

    def __init__(self, events: list[OperationEvent], breaks: int = 0, abort: Abort | None = None) -> None:
        self.events = events
        self.breaks = breaks
        self.abort = abort
        self.asked_after: list[int] = []
        self.cancelled = threading.Event()

    def register(self, server: grpc.Server) -> None:
        operation_pb2_grpc.add_OperationServiceServicer_to_server(self, server)
        operations_pb2_grpc.add_OperationsServicer_to_server(self, server)

    def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        return operations_pb2.Operation(name=NAME)

    def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: grpc.ServicerContext) -> Empty:
        self.cancelled.set()
        return Empty()

    def WatchOperation(self, request: WatchOperationRequest, context: grpc.ServicerContext) -> Iterator[OperationEvent]:
        self.asked_after.append(request.after_sequence)
        left = [event for event in self.events if event.sequence > request.after_sequence]
        if len(self.asked_after) > self.breaks:
            yield from left
            return
        yield from left[:3]
        if self.abort:
            self.abort(context)


def unavailable(context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")


@pytest.mark.parametrize("abort", [unavailable, None], ids=["UNAVAILABLE", "an end too early"])
def test_a_watch_goes_on_where_it_broke(abort: Abort | None) -> None:
    server = Server(story(finished()), breaks=2, abort=abort)
    seen: list[int] = []
    with serving(server.register) as address, Client(address) as client:
        version = client.get_operation(NAME).result(timeout=30, on_event=lambda event: seen.append(event.sequence))
    assert version == ModelVersion(name="models/beer/versions/1")
    assert seen == list(range(1, 11))
    assert server.asked_after == [0, 3, 6]


def test_a_watch_goes_on_where_it_broke_in_asyncio() -> None:
    server = Server(story(finished()), breaks=2, abort=unavailable)
    seen: list[int] = []

    async def watch(address: str) -> ModelVersion:
        async with AsyncClient(address) as client:
            operation = await client.get_operation(NAME)
            version: ModelVersion = await operation.result(on_event=lambda event: seen.append(event.sequence))
            assert await operation.done()
            return version

    with serving(server.register) as address:
        assert asyncio.run(watch(address)).name == "models/beer/versions/1"
    assert seen == list(range(1, 11))
    assert server.asked_after == [0, 3, 6]


def test_events_behind_a_sequence_number() -> None:
    server = Server(story(finished()))
    with serving(server.register) as address, Client(address) as client:
        assert [event.sequence for event in client.get_operation(NAME).events(after=8)] == [9, 10]


def test_nothing_behind_the_last_event() -> None:
    server = Server(story(finished()))
    with serving(server.register) as address, Client(address) as client:
        operation = client.get_operation(NAME)
        operation.result()
        assert list(operation.events(after=10)) == []


def test_another_error_is_not_tried_again() -> None:
    server = Server(story(finished()), breaks=1, abort=lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "gone"))
    with serving(server.register) as address, Client(address) as client, pytest.raises(errors.NotFound, match="gone"):
        client.get_operation(NAME).result()
    assert server.asked_after == [0]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(code_pb2.RESOURCE_EXHAUSTED, errors.OperationFailed), (code_pb2.CANCELLED, errors.OperationCancelled)],
)
def test_an_operation_that_ends_in_an_error(code: int, kind: type[errors.OperationFailed]) -> None:
    server = Server(story(finished(error=code)))
    with serving(server.register) as address, Client(address) as client, pytest.raises(kind) as caught:
        client.get_operation(NAME).result()
    assert type(caught.value) is kind
    assert (caught.value.operation, caught.value.message) == (NAME, "no room")
    assert caught.value.code.value[0] == code
    assert isinstance(caught.value.__cause__, errors.LuthierClientError)


def test_a_time_out_ends_the_wait_and_not_the_operation() -> None:
    released = threading.Event()
    server = Server(story(finished())[:3], breaks=1, abort=lambda context: released.wait(20) or None)
    with serving(server.register) as address, Client(address) as client:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            client.get_operation(NAME).result(timeout=0.3)
        assert time.monotonic() - started < 5
        released.set()
        assert not server.cancelled.is_set()


def test_cancel_asks_the_server() -> None:
    server = Server(story(finished()))
    with serving(server.register) as address, Client(address) as client:
        client.get_operation(NAME).cancel()
        assert server.cancelled.is_set()
