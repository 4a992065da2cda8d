"""The one place that every call passes: where exceptions become statuses, and calls are counted, named and traced."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import grpc
import sqlalchemy as sa
import structlog
from google.longrunning import operations_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from luthier.errors import DeadlineExceeded, LuthierError, MalformedRequest, Unavailable
from luthier.logs import unexpected
from luthier.services.binding import Behavior, behavior_of, with_behavior
from luthier.services.statuses import fitting
from luthier.telemetry.calls import REQUEST_ID, Call, current
from luthier.telemetry.meters import Meters, MethodMeter
from luthier.telemetry.traces import Tracing

log = structlog.get_logger()

CHANGES = re.compile(
    r"/(luthier\.v1|google\.longrunning|inference)\.\w+/"
    r"(Create|Delete|Set|Upload|Pull|Import|FineTune|Evaluate|BatchPredict|Cancel|Pause|Resume|Revoke|RepositoryModel"
    r"|StartRollout|UpdateRollout|StopRollout)\w*"
)
"""Methods that change something. Each call of theirs is a line in the log, and is answered with its request id."""

UNKNOWN = "unknown"
"""What calls of methods that this server does not have are counted under: their names are the callers' own."""


class CallInterceptor(grpc.ServerInterceptor):
    """Ends each call that raised with a google.rpc.Status, and refuses calls whose time is over before they begin."""

    def __init__(self, meters: Meters, tracing: Tracing | None = None) -> None:
        self._meters = meters
        self._tracing = tracing
        self._methods: dict[str, tuple[grpc.RpcMethodHandler, grpc.RpcMethodHandler]] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Notes when the call came, and gives its method's handler, wrapped when it was first called."""
        handler = continuation(handler_call_details)
        if handler is None:
            self._meters.method(UNKNOWN).count("UNIMPLEMENTED", 0.0)
            return None
        current.set(Call(handler_call_details.invocation_metadata))
        name = handler_call_details.method
        known = self._methods.get(name)
        if known is None or known[0] is not handler:
            self._methods[name] = known = (handler, self._wrapped(name, handler))
        return known[1]

    def _wrapped(self, name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """The handler with all that is around a call; it keeps the attributes that name its thread pool."""
        behavior = behavior_of(handler)
        if handler.request_streaming:
            behavior = _taking_up(behavior)
        method = _Method(name, self._meters.method(name), self._tracing, CHANGES.fullmatch(name) is not None)
        wrapped = (_stream if handler.response_streaming else _unary)(behavior, method)
        return with_behavior(handler, wrapped, _guarded(handler.request_deserializer))


class _Unread(NamedTuple):
    """In the place of a request that could not be read."""

    error: Exception


def _guarded(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """The same, but what it raises ends the call as what a behavior raises does; grpc would say INTERNAL and log it."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Unread(MalformedRequest("the bytes are no message of this method"))
        except Exception as error:
            return _Unread(error)

    return read


@dataclass(frozen=True)
class _Method:
    name: str
    meter: MethodMeter
    tracing: Tracing | None
    changes: bool

    def begin(self, context: grpc.ServicerContext) -> Call:
        call = current.get()
        assert call is not None
        self.meter.begin(call)
        if self.tracing is not None:
            call.span = self.tracing.begin(self.name, call)
        if self.changes:
            context.set_trailing_metadata([(REQUEST_ID, call.request_id)])
        return call

    def end(self, call: Call, arrived: float, code: str, response: Any = None) -> None:
        seconds = perf_counter() - arrived
        self.meter.end(call, code, seconds)
        if call.span is not None:
            call.span.end(code)
        if self.changes:
            started = {"operation": response.name} if isinstance(response, operations_pb2.Operation) else {}
            by = {"principal": call.principal} if call.principal else {}
            log.info("call", method=self.name, code=code, seconds=round(seconds, 6), **started, **by)


def _unary(behavior: Behavior, method: _Method) -> Behavior:
    @functools.wraps(behavior)
    def run(request: Any, context: grpc.ServicerContext) -> Any:
        call = method.begin(context)
        arrived, code, response = call.arrived, "UNKNOWN", None
        try:
            _check_deadline(context)
            if type(request) is _Unread:
                raise request.error
            response = behavior(request, context)
            code = _said(context, "OK")
            return response
        except Exception as error:
            code, ended = _ended(error, context, method.name, call)
            if ended is None:
                raise
            context.abort_with_status(ended)
        finally:
            method.end(call, arrived, code, response)

    return run


def _stream(behavior: Behavior, method: _Method) -> Behavior:
    @functools.wraps(behavior)
    def run(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        call = method.begin(context)
        # Where the caller goes away, grpc drops the generator.
        arrived, code = call.arrived, "CANCELLED"
        try:
            if type(request) is _Unread:
                raise request.error
            yield from behavior(request, context)
            code = _said(context, "OK")
        except Exception as error:
            code, ended = _ended(error, context, method.name, call)
            if ended is None:
                raise
            context.abort_with_status(ended)
        finally:
            method.end(call, arrived, code)

    return run


def _taking_up(behavior: Behavior) -> Behavior:
    """A behavior for which each request of the stream is an arrival."""

    @functools.wraps(behavior)
    def run(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        return behavior(_arrivals(requests), context)

    return run


def _arrivals(requests: Iterator[Any]) -> Iterator[Any]:
    call = current.get()
    assert call is not None
    for request in requests:
        call.arrived = perf_counter()
        if type(request) is _Unread:
            raise request.error
        yield request


def _check_deadline(context: grpc.ServicerContext) -> None:
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineExceeded("the deadline had passed before the work began")


def _ended(error: Exception, context: grpc.ServicerContext, method: str, call: Call) -> tuple[str, grpc.Status | None]:
    """The name of the status that an exception ends a call with, and the status, where grpc does not end it itself."""
    if isinstance(error, LuthierError):
        status = error.status()
    elif isinstance(error, sa.exc.OperationalError):
        status = Unavailable("the database does not answer; try again").status()
    elif not context.is_active():
        return _said(context, "CANCELLED"), None
    elif isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:
        # As generated servicers have it for what a method's own servicer leaves out; grpc would log it as a failure.
        status = status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message="this server does not have the method")
    elif context.code() is not None:
        return _said(context, "UNKNOWN"), None
    else:
        status = unexpected(error, method)
    status = fitting(status)
    status.details.add().Pack(error_details_pb2.RequestInfo(request_id=call.request_id))
    ended = rpc_status.to_status(status)
    ended = ended._replace(trailing_metadata=(*ended.trailing_metadata, (REQUEST_ID, call.request_id)))
    return code_pb2.Code.Name(status.code), ended


def _said(context: grpc.ServicerContext, otherwise: str) -> str:
    """The name of the status that a servicer or grpc has set."""
    code = context.code()
    return otherwise if code is None else code.name
