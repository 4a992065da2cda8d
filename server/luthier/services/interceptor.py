"""The one place where exceptions become statuses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import sqlalchemy as sa
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from luthier.errors import DeadlineExceeded, LuthierError, Unavailable
from luthier.logs import unexpected
from luthier.services.binding import Behavior, behavior_of, with_behavior


class ErrorInterceptor(grpc.ServerInterceptor):
    """Ends each call that raised with a google.rpc.Status, and refuses calls whose time is over before they begin."""

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[grpc.RpcMethodHandler, grpc.RpcMethodHandler]] = {}
        """Each method's handler as it was and as it was wrapped, since wrapping takes longer than a small model."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Wraps the handler, of which it keeps the attributes that name its thread pool."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            wrap = _stream if handler.response_streaming else _unary
            known = self._wrapped[method] = handler, with_behavior(handler, wrap(behavior_of(handler), method))
        return known[1]


def _unary(behavior: Behavior, method: str) -> Behavior:
    @functools.wraps(behavior)
    def run(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            _check_deadline(context)
            return behavior(request, context)
        except Exception as error:
            _abort(context, error, method)

    return run


def _stream(behavior: Behavior, method: str) -> Behavior:
    @functools.wraps(behavior)
    def run(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from behavior(request, context)
        except Exception as error:
            _abort(context, error, method)

    return run


def _check_deadline(context: grpc.ServicerContext) -> None:
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineExceeded("the deadline had passed before the work began")


def _abort(context: grpc.ServicerContext, error: Exception, method: str) -> None:
    """Ends the call. grpc's own abort and its cancelled streams are passed on as they are."""
    if isinstance(error, LuthierError):
        status = error.status()
    elif isinstance(error, sa.exc.OperationalError):
        status = Unavailable("the database does not answer; try again").status()
    elif isinstance(error, DecodeError) or not context.is_active() or context.code() is not None:
        raise error
    else:
        status = unexpected(error, method)
    context.abort_with_status(rpc_status.to_status(status))
