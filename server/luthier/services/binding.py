"""Which thread pool a call runs in, and how a service is bound from nothing but its descriptor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

Behavior = Callable[[Any, grpc.ServicerContext], Any]

_LONG = frozenset({"WaitOperation", "RecordFeedback"})
"""Unary methods that may hold their thread as long as a stream does."""

_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class PooledServer:
    """A server to add servicers to, whose unary calls then run in `control` and whose streams in `streams`.

    Without it they would share the server's own threads, which are for predictions alone; so do unary calls without a
    `control`.
    """

    def __init__(self, server: grpc.Server, control: ThreadPoolExecutor | None, streams: ThreadPoolExecutor) -> None:
        self._server = server
        self._control = control
        self._streams = streams

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Adds handlers, each method bound to its pool."""
        self._server.add_generic_rpc_handlers([_Pooled(each, self._control, self._streams) for each in handlers])

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        """Newer generated code adds the same methods a second time by this call; older has the generic one alone."""


class _Pooled(grpc.GenericRpcHandler):
    """A handler whose methods are bound to pools as they are first called."""

    def __init__(
        self, handler: grpc.GenericRpcHandler, control: ThreadPoolExecutor | None, streams: ThreadPoolExecutor
    ) -> None:
        self._handler = handler
        self._control = control
        self._streams = streams
        self._bound: dict[str, grpc.RpcMethodHandler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The method that a call names."""
        method: str = handler_call_details.method
        if method not in self._bound:
            handler = self._handler.service(handler_call_details)
            if handler is None:
                return None
            self._bound[method] = self._bind(method.rpartition("/")[2], handler)
        return self._bound[method]

    def _bind(self, name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        long = handler.request_streaming or handler.response_streaming or name in _LONG
        pool = self._streams if long else self._control
        return with_behavior(handler, in_pool(behavior_of(handler), pool)) if pool else handler


def in_pool(behavior: Behavior, pool: ThreadPoolExecutor) -> Behavior:
    """A behavior that grpc runs in a pool of its own instead of the server's threads."""

    @functools.wraps(behavior)
    def run(request: Any, context: grpc.ServicerContext) -> Any:
        return behavior(request, context)

    run.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return run


def behavior_of(handler: grpc.RpcMethodHandler) -> Behavior:
    """The function of a handler, whatever its kind."""
    behavior: Behavior = getattr(handler, _kind(handler))
    return behavior


def with_behavior(
    handler: grpc.RpcMethodHandler, behavior: Behavior, deserializer: Callable[[bytes], Any] | None = None
) -> grpc.RpcMethodHandler:
    """The same handler around another function, and with another way to read requests where one is given."""
    make = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    return make(behavior, deserializer or handler.request_deserializer, handler.response_serializer)


def _kind(handler: grpc.RpcMethodHandler) -> str:
    return _KINDS[2 * bool(handler.request_streaming) + bool(handler.response_streaming)]
