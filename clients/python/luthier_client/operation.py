"""Handles of long-running operations, which watch and wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import grpc
from google.longrunning import operations_pb2
from google.protobuf.message import Message

from luthier.v1 import base_pb2, batch_prediction_pb2, dataset_pb2, evaluation_pb2, model_pb2
from luthier.v1.operation_pb2 import OperationEvent, OperationMetadata, WatchOperationRequest
from luthier_client import errors

if TYPE_CHECKING:
    from luthier_client.async_client import AsyncClient
    from luthier_client.client import Client

R = TypeVar("R", bound=Message)

RESPONSES: dict[str, type[Message]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (
        base_pb2.Base,
        batch_prediction_pb2.BatchPrediction,
        dataset_pb2.DatasetVersion,
        evaluation_pb2.Evaluation,
        model_pb2.ModelVersion,
    )
}

PATIENCE_S = 60.0
"""How long a broken watch is tried again before the operation is given up on. It goes on at the server all the same."""


class Watch:
    """Where a watch stands: which request goes on with it, and whether and when to try again after it broke."""

    def __init__(self, name: str, after: int, timeout: float | None) -> None:
        self._name = name
        self._after = after
        self._end = None if timeout is None else time.monotonic() + timeout
        self._broken_since: float | None = None
        self._delay_s = 0.1
        self.ended = False

    def request(self) -> WatchOperationRequest:
        """Asks for the events not yet seen."""
        return WatchOperationRequest(name=self._name, after_sequence=self._after)

    def remaining_s(self) -> float | None:
        """What is left of the time-out."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def saw(self, event: OperationEvent) -> None:
        """Notes an event."""
        self._after = event.sequence
        self._broken_since = None
        self._delay_s = 0.1
        self.ended = event.HasField("done")

    def broke(self, error: grpc.RpcError | None) -> float:
        """Seconds to wait before the next try; raises where there is to be none.

        A stream that ended before the operation did (`error` None) broke too: a server that shuts down may end it so.
        """
        now = time.monotonic()
        self._broken_since = self._broken_since or now
        if error is not None:
            translated = errors.from_rpc(error)
            if not isinstance(translated, errors.Unavailable) or now - self._broken_since > PATIENCE_S:
                raise translated from error
        delay, self._delay_s = self._delay_s, min(self._delay_s * 2, 2.0)
        return delay


class Handle(Generic[R]):
    """What is known of an operation without asking."""

    def __init__(self, proto: operations_pb2.Operation) -> None:
        self.proto = proto
        """As the server last told it: google.longrunning.Operation."""

    @property
    def name(self) -> str:
        """`operations/{operation}`."""
        return str(self.proto.name)

    @property
    def metadata(self) -> OperationMetadata:
        """Kind, state, target and progress, as the server last told them."""
        metadata = OperationMetadata()
        self.proto.metadata.Unpack(metadata)
        return metadata

    def _note(self, watch: Watch, event: OperationEvent) -> None:
        watch.saw(event)
        if watch.ended:
            self.proto = event.done

    def _answer(self) -> R:
        """The response of an operation that has ended; raises OperationFailed where it ended in an error."""
        if self.proto.HasField("error"):
            error = errors.from_status(self.proto.error)
            cancelled = error.code is grpc.StatusCode.CANCELLED
            raise (errors.OperationCancelled if cancelled else errors.OperationFailed)(self.name, error)
        response = RESPONSES[self.proto.response.TypeName()]()
        self.proto.response.Unpack(response)
        return cast(R, response)


class Operation(Handle[R]):
    """An operation of a `Client`."""

    def __init__(self, client: Client, proto: operations_pb2.Operation) -> None:
        super().__init__(proto)
        self._client = client

    def done(self) -> bool:
        """Whether it has ended; asks the server where that is not known yet."""
        if not self.proto.done:
            self.proto = self._client.get_operation(self.name).proto
        return bool(self.proto.done)

    def events(self, after: int = 0, timeout: float | None = None) -> Iterator[OperationEvent]:
        """What happened behind a sequence number, then what happens, until the operation has ended.

        The last event is `done`. Where there is nothing behind `after` and the operation has ended, there is none. A
        stream that breaks is taken up again where it broke. Raises DeadlineExceeded after `timeout` seconds.
        """
        watch = Watch(self.name, after, timeout)
        while True:
            settled = self.proto.done
            stream: Any = self._client.operation_stub.WatchOperation(watch.request(), timeout=watch.remaining_s())
            broken: grpc.RpcError | None = None
            try:
                for event in stream:
                    self._note(watch, event)
                    yield event
            except grpc.RpcError as error:
                broken = error
            finally:
                stream.cancel()
            if watch.ended or (broken is None and settled):
                return
            time.sleep(watch.broke(broken))
            if broken is None:
                self.done()

    def result(self, timeout: float | None = None, on_event: Callable[[OperationEvent], object] | None = None) -> R:
        """Waits for the end and returns the response.

        `on_event` is called with each event from the first on. Raises OperationFailed where the operation ended in an
        error, OperationCancelled where it was cancelled, DeadlineExceeded after `timeout` seconds.
        """
        for event in self.events(timeout=timeout):
            if on_event:
                on_event(event)
        return self._answer()

    def cancel(self) -> None:
        """Asks for an end; the operation ends a little later, or stays as it is where it has ended."""
        self._client.cancel_operation(self.name)

    def pause(self) -> None:
        """Asks for a pause: a training saves where it stands and stops a little later."""
        self._client.pause_operation(self.name)

    def resume(self) -> None:
        """Ends a pause."""
        self._client.resume_operation(self.name)


class AsyncOperation(Handle[R]):
    """An operation of an `AsyncClient`."""

    def __init__(self, client: AsyncClient, proto: operations_pb2.Operation) -> None:
        super().__init__(proto)
        self._client = client

    async def done(self) -> bool:
        """Whether it has ended; asks the server where that is not known yet."""
        if not self.proto.done:
            self.proto = (await self._client.get_operation(self.name)).proto
        return bool(self.proto.done)

    async def events(self, after: int = 0, timeout: float | None = None) -> AsyncIterator[OperationEvent]:
        """What happened behind a sequence number, then what happens, until the operation has ended.

        The last event is `done`. Where there is nothing behind `after` and the operation has ended, there is none. A
        stream that breaks is taken up again where it broke. Raises DeadlineExceeded after `timeout` seconds.
        """
        watch = Watch(self.name, after, timeout)
        while True:
            settled = self.proto.done
            stream = self._client.operation_stub.WatchOperation(watch.request(), timeout=watch.remaining_s())
            broken: grpc.RpcError | None = None
            try:
                async for event in stream:
                    self._note(watch, event)
                    yield event
            except grpc.RpcError as error:
                broken = error
            finally:
                stream.cancel()
            if watch.ended or (broken is None and settled):
                return
            await asyncio.sleep(watch.broke(broken))
            if broken is None:
                await self.done()

    async def result(
        self, timeout: float | None = None, on_event: Callable[[OperationEvent], object] | None = None
    ) -> R:
        """Waits for the end and returns the response.

        `on_event` is called with each event from the first on. Raises OperationFailed where the operation ended in an
        error, OperationCancelled where it was cancelled, DeadlineExceeded after `timeout` seconds.
        """
        async for event in self.events(timeout=timeout):
            if on_event:
                on_event(event)
        return self._answer()

    async def cancel(self) -> None:
        """Asks for an end; the operation ends a little later, or stays as it is where it has ended."""
        await self._client.cancel_operation(self.name)

    async def pause(self) -> None:
        """Asks for a pause: a training saves where it stands and stops a little later."""
        await self._client.pause_operation(self.name)

    async def resume(self) -> None:
        """Ends a pause."""
        await self._client.resume_operation(self.name)
