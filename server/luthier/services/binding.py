"""Which thread pool a call runs in, and how a service is bound from nothing but its descriptor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

Behavior = Callable[[Any, grpc.ServicerContext], Any]

_LONG = frozenset({"WaitOperation"})
"""Unary methods that may hold their thread as long as a stream does."""

_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class PooledServer:
    """A server to add servicers to, whose unary calls then run in `control` and whose streams in `streams`.

    Without it they would share the server's own threads, which are for predictions alone.
    """

    def __init__(self, server: grpc.Server, control: ThreadPoolExecutor, streams: ThreadPoolExecutor) -> None:
        self._server = server
        self._control = control
        self._streams = streams

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Called by generated code beside `add_registered_method_handlers`, with the same methods: not needed."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        """Adds handlers, each bound to its pool."""
        pooled = {name: self._pooled(name, handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, pooled)

    def _pooled(self, name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        streaming = handler.request_streaming or handler.response_streaming or name in _LONG
        behavior = behavior_of(handler)
        if not hasattr(behavior, "experimental_thread_pool"):
            behavior = in_pool(behavior, self._streams if streaming else self._control)
        return with_behavior(handler, behavior)


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


def with_behavior(handler: grpc.RpcMethodHandler, behavior: Behavior) -> grpc.RpcMethodHandler:
    """The same handler around another function."""
    make = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    return make(behavior, handler.request_deserializer, handler.response_serializer)


def _kind(handler: grpc.RpcMethodHandler) -> str:
    return _KINDS[2 * bool(handler.request_streaming) + bool(handler.response_streaming)]
