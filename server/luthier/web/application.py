"""Which request goes where, and what one ends with that failed."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from google.rpc import code_pb2
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.logs import unexpected
from luthier.web.bodies import Bodies
from luthier.web.connect import Connect
from luthier.web.failures import Failure
from luthier.web.open_inference import OpenInference
from luthier.web.upstream import Upstream, named
from luthier.web.work import Work

_TOGETHER = 16
"""How many of the largest requests may be worked on at once."""


class Application:
    """Answers every request."""

    def __init__(self, upstream: Upstream, max_request_bytes: int, origins: Collection[str]) -> None:
        bodies, work = Bodies(max_request_bytes, _TOGETHER * max_request_bytes), Work()
        self._upstream = upstream
        self._origins = frozenset(origins)
        self._connect = Connect(upstream, bodies, work)
        self._open_inference = OpenInference(upstream, bodies, work)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The interface of ASGI."""
        request = Request(scope, receive)
        path = request.url.path
        is_open_inference = path == "/v2" or path.startswith("/v2/")
        try:
            self._check_origin(request)
            response = await (self._open_inference if is_open_inference else self._connect).answer(request)
        except ClientDisconnect:
            return
        except Failure as failure:
            response = self._failed(failure, is_open_inference)
        except Exception as error:
            response = self._failed(Failure(unexpected(error, "a request over HTTP")), is_open_inference)
        await response(scope, receive, send)

    def _check_origin(self, request: Request) -> None:
        """Refuses what a page of another origin sends.

        Browsers keep answers from such a page, and yet send what it wants; and a page whose name was made to mean this
        machine is of no other origin to them.
        """
        origin = request.headers.get("origin")
        if origin is not None and "*" not in self._origins and origin not in self._origins:
            why = f"pages of {origin[:200]!r} may not call this server; --http-origins names those that may"
            raise Failure.plain(code_pb2.PERMISSION_DENIED, why)

    def _failed(self, failure: Failure, is_open_inference: bool) -> Response:
        said: Any = {"error": failure.status.message} if is_open_inference else failure.connect(self._upstream.pool)
        content = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
        headers = failure.headers | named(failure.trailers)
        return Response(content, failure.http, headers, "application/json")


def application(upstream: Upstream, max_request_bytes: int, origins: Collection[str]) -> ASGIApp:
    """The application, with answers that pages of some origins may read."""
    answering = Application(upstream, max_request_bytes, origins)
    if not origins:
        return answering
    return CORSMiddleware(
        answering, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=["*"]
    )
