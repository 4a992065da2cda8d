"""The trace that a caller is in goes along with its calls, where the caller's program uses OpenTelemetry."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio

AVAILABLE = importlib.util.find_spec("opentelemetry") is not None
"""Whether opentelemetry-api is installed; without it nothing is added to a channel, nor to the time of a call."""


class _Details(NamedTuple):
    """What a call is made with; grpc has no public class of it."""

    method: Any
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None = None


def _joined(details: Any) -> Any:
    """The details of a call with the `traceparent` of the span that is current, if one is."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    metadata = list(details.metadata or ())
    if not trace.get_current_span().get_span_context().is_valid or any(key == "traceparent" for key, _ in metadata):
        return details
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    given = {name: getattr(details, name, None) for name in _Details._fields}
    return _Details(**{**given, "metadata": grpc.aio.Metadata(*metadata, *carrier.items())})


class Joining(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Has the calls of a channel join the trace of their caller."""

    def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(_joined(details), request)

    intercept_unary_unary = _intercept
    intercept_unary_stream = _intercept
    intercept_stream_unary = _intercept
    intercept_stream_stream = _intercept


async def _intercept(_self: object, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
    return await continuation(_joined(details), request)


# grpc.aio takes an interceptor for one kind of calls, even if it is of several.
class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary = _intercept


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream = _intercept


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary = _intercept


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream = _intercept


def joining_async() -> list[grpc.aio.ClientInterceptor]:
    """The same for asyncio."""
    return [_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream()]
