"""The call that a thread is busy with: since when it has been there, and what it is known by."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from time import perf_counter
from typing import Protocol

REQUEST_ID = "x-request-id"
"""Key of the metadata in which a caller may name its request, and in which the server answers."""

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/@-]{0,127}")
"""What may be repeated in logs and metadata: no space, no quote, no line break, and not much of it."""


class Span(Protocol):
    """A call that is traced. Times are those of `time.perf_counter`, in seconds."""

    def stage(self, name: str, began: float, ended: float, model: str, version: str, rows: int) -> None:
        """Adds a part of the call that is over."""

    def end(self, code: str) -> None:
        """Ends the call with the name of its gRPC status."""


class Call:
    """A gRPC call in this process."""

    __slots__ = ("_metadata", "_request_id", "arrived", "principal", "span")

    def __init__(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        self._metadata = metadata
        self._request_id = ""
        self.arrived = perf_counter()
        """When it came, in seconds of `time.perf_counter`; in a stream of requests, when the newest was taken up."""
        self.span: Span | None = None
        """Where it is traced."""
        self.principal = ""
        """Who calls; empty where nobody asked, or nobody knows."""

    @property
    def request_id(self) -> str:
        """The caller's own name of its request, where that is safe to repeat; else one made when first asked for."""
        if not self._request_id:
            given = self.metadata().get(REQUEST_ID, "")
            self._request_id = given if _SAFE.fullmatch(given) else uuid.uuid4().hex
        return self._request_id

    def metadata(self) -> dict[str, str]:
        """What the caller sent along, texts alone; of several with one key the last."""
        return {key: value for key, value in self._metadata or () if isinstance(value, str)}


current: ContextVar[Call | None] = ContextVar("call", default=None)
"""The call that this thread is busy with, or None. gRPC gives each call a context of its own, from its interceptors to
its last answer, so that nothing has to be set back."""
