"""Refusing predictions at the door while more wait for a thread than may."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from luthier.errors import ResourceExhausted
from luthier.inference.threads import Threads
from luthier.services.binding import behavior_of, in_pool, with_behavior

_RETRY_S = 0.1
"""Long enough for a thousand of the quick calls that can wait here; slow ones wait in their model's lane."""


class Admission(grpc.ServerInterceptor):
    """Lets a call through, or has a thread of another pool refuse it at once.

    The calls that this is about are those without a pool of their own, which the threads for predictions run. Those
    threads soon learn which model a call is for and let it wait there; what waits here is of all models.
    """

    def __init__(self, threads: Threads, refusals: ThreadPoolExecutor, most_waiting: int) -> None:
        self._threads = threads
        self._refusal = in_pool(self._refuse, refusals)
        self._most_waiting = most_waiting

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The method that was called, or one that refuses."""
        handler = continuation(handler_call_details)
        if handler is None or self._threads.waiting < self._most_waiting:
            return handler
        if hasattr(behavior_of(handler), "experimental_thread_pool"):
            return handler
        return with_behavior(handler, self._refusal)

    def _refuse(self, request: Any, context: grpc.ServicerContext) -> NoReturn:
        raise ResourceExhausted(f"{self._most_waiting} predictions wait, which is all that may", retry_s=_RETRY_S)
