"""Doing what takes time beside the event loop, and no longer than somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")

_LARGE_BYTES = 64 * 1024
"""From here on a message is read or written by the thread: others are answered meanwhile."""


class Work:
    """One thread: JSON can take thirty times its size in memory while it is read, so that large ones take turns."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="large")

    async def do(self, size: int, function: Callable[..., T], *args: Any) -> T:
        """The result of a function that works on so many bytes."""
        if size < _LARGE_BYTES:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


async def until_gone(request: Request, call: Any, answer: Awaitable[T]) -> T:
    """The answer to a call, which is cancelled when its caller goes; raises ClientDisconnect then."""
    gone = asyncio.ensure_future(request.receive())
    gone.add_done_callback(lambda done: done.cancelled() or call.cancel())
    try:
        return await answer
    except asyncio.CancelledError:
        if gone.done() and not gone.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        gone.cancel()
