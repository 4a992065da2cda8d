"""Something that goes along in the metadata of every call of a channel, for threads and for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import grpc
import grpc.aio

Entries = Iterable[tuple[str, str]]

Adds = Callable[[list[tuple[str, str]]], Entries]
"""What to add to a call's metadata, which it is given."""


class _Details(NamedTuple):
    """What a call is made with; grpc has no public class of it."""

    method: Any
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None = None


def _added(details: Any, adds: Adds) -> Any:
    metadata = list(details.metadata or ())
    entries = list(adds(metadata))
    if not entries:
        return details
    given = {name: getattr(details, name, None) for name in _Details._fields}
    return _Details(**{**given, "metadata": grpc.aio.Metadata(*metadata, *entries)})


class Adding(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds to the metadata of a channel's calls."""

    def __init__(self, adds: Adds) -> None:
        self._adds = adds

    def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(_added(details, self._adds), request)

    intercept_unary_unary = _intercept
    intercept_unary_stream = _intercept
    intercept_stream_unary = _intercept
    intercept_stream_stream = _intercept


class _Async:
    def __init__(self, adds: Adds) -> None:
        self._adds = adds

    async def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return await continuation(_added(details, self._adds), request)


# grpc.aio takes an interceptor for one kind of calls, even if it is of several.
class _UnaryUnary(_Async, grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary = _Async._intercept


class _UnaryStream(_Async, grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream = _Async._intercept


class _StreamUnary(_Async, grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary = _Async._intercept


class _StreamStream(_Async, grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream = _Async._intercept


def adding_async(adds: Adds) -> list[grpc.aio.ClientInterceptor]:
    """The same as `Adding` for asyncio."""
    return [_UnaryUnary(adds), _UnaryStream(adds), _StreamUnary(adds), _StreamStream(adds)]
