"""The Connect protocol for every method of every service: https://connectrpc.com/docs/protocol.

Methods of one message each way are plain POSTs of JSON, or of the wire format. Those that stream take and give a
sequence of messages, each after five bytes: whether it is compressed or the last, and its length.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.rpc import code_pb2
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from luthier.errors import InvalidArgument
from luthier.logs import unexpected
from luthier.web import json_messages
from luthier.web.bodies import Bodies, Place, check_encoding, chunks
from luthier.web.failures import Failure
from luthier.web.upstream import Metadata, Method, Upstream, failure_of, finish, metadata_of, named, too_large, written
from luthier.web.work import Work, until_gone

_UNARY = {"application/json": True, "application/proto": False}
_STREAMING = {"application/connect+json": True, "application/connect+proto": False}
"""Whether a content type is JSON."""
_TIMEOUT = re.compile(r"\d{1,10}")
_COMPRESSED, _END = 1, 2
_JSON = "application/json"


class Connect:
    """Answers requests for methods."""

    def __init__(self, upstream: Upstream, bodies: Bodies, work: Work) -> None:
        self._upstream = upstream
        self._bodies = bodies
        self._work = work

    async def answer(self, request: Request) -> Response:
        """The answer to a request for `/package.Service/Method`; raises Failure."""
        method = self._upstream.methods.get(request.url.path)
        if method is None:
            why = f"there is no method {request.url.path[:200]!r}; POST to /package.Service/Method"
            raise Failure.plain(code_pb2.UNIMPLEMENTED, why, 404)
        if request.method == "GET" and method.is_safe and not method.streams:
            return await self._get(request, method)
        if request.method != "POST":
            allowed = "GET, POST" if method.is_safe and not method.streams else "POST"
            why = f"{request.method} is not for {method.path}; use {allowed}"
            raise Failure.plain(code_pb2.UNIMPLEMENTED, why, 405, allow=allowed)
        is_json = _is_json(request, _STREAMING if method.streams else _UNARY, method)
        _check_version(request.headers.get("connect-protocol-version", "1"))
        if method.streams:
            return await self._stream(request, method, is_json)
        with self._bodies.place() as place:
            return await self._call(request, method, is_json, await place.read(request))

    async def _get(self, request: Request, method: Method) -> Response:
        """A call without side effects, whose message is in the URL."""
        asked = request.query_params
        _check_version(asked.get("connect", "v1").removeprefix("v"))
        encoding, message = asked.get("encoding", ""), asked.get("message", "").encode()
        if encoding not in ("json", "proto"):
            raise Failure.plain(code_pb2.INVALID_ARGUMENT, "encoding: is neither json nor proto", 415)
        check_encoding(asked.get("compression", ""), "compression")
        if asked.get("base64") == "1":
            try:
                message = b64decode(message + b"=" * (-len(message) % 4), b"-_", validate=True)
            except binascii.Error:
                raise Failure.of(InvalidArgument({"message": "is no base64"})) from None
        with self._bodies.place() as place:
            if asked.get("compression") == "gzip":
                message = place.inflate(message)
            return await self._call(request, method, encoding == "json", message)

    async def _call(self, request: Request, method: Method, is_json: bool, body: bytes) -> Response:
        timeout_s, metadata = _timeout_s(request), metadata_of(request.scope)
        message = await self._read(method, is_json, body)
        call = self._upstream.begin(method.path, message, metadata, timeout_s)
        answer = await until_gone(request, call, finish(call))
        content = await self._write(method, is_json, answer.message)
        headers = answer.headers | named(answer.trailers)
        return Response(content, headers=headers, media_type=_JSON if is_json else "application/proto")

    async def _read(self, method: Method, is_json: bool, body: bytes) -> bytes:
        if not is_json:
            return await self._work.do(len(body), json_messages.check, method.request, body)
        return await self._work.do(len(body), json_messages.parse, method.request, self._upstream.pool, body)

    async def _write(self, method: Method, is_json: bool, message: bytes) -> bytes:
        if not is_json:
            return message
        return await self._work.do(len(message), json_messages.write, method.response, self._upstream.pool, message)

    async def _stream(self, request: Request, method: Method, is_json: bool) -> Response:
        both = method.descriptor.client_streaming and method.descriptor.server_streaming
        if both and request.scope["http_version"] < "2":
            why = f"{method.path} streams both ways, for which this port's HTTP/1.1 is too old; use gRPC"
            raise Failure.plain(code_pb2.UNIMPLEMENTED, why, 505)
        compression = request.headers.get("connect-content-encoding", "identity")
        check_encoding(compression, "connect-content-encoding")
        timeout_s, metadata = _timeout_s(request), metadata_of(request.scope)
        media_type = next(name for name, kind in _STREAMING.items() if kind is is_json)
        return _Streaming(self._answers(request, method, is_json, metadata, timeout_s), media_type)

    async def _answers(
        self, request: Request, method: Method, is_json: bool, metadata: Metadata, timeout_s: float | None
    ) -> AsyncIterator[bytes]:
        """The envelopes of a stream's answers, and the one that ends it; nothing more once the caller has gone."""
        ended: dict[str, Any] = {}
        with self._bodies.place() as place:
            reading = _Reading(request, self._messages(request, method, is_json, place))
            call = self._upstream.stream(method.path, reading.messages(), metadata, timeout_s)
            reading.ends(call)
            try:
                async for message in call:
                    yield _envelope(0, await self._write(method, is_json, message))
                trailers = written(await call.trailing_metadata())
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
                ended["error"], trailers = failure.connect(self._upstream.pool), failure.trailers
            except asyncio.CancelledError:
                # What is wrong with a message, or a caller who goes, ends the call from this side.
                if reading.failure is None:
                    if (task := asyncio.current_task()) and task.cancelling():
                        raise
                    return
                ended["error"], trailers = reading.failure.connect(self._upstream.pool), {}
            finally:
                reading.close()
                call.cancel()
            if trailers:
                ended["metadata"] = {key: [value] for key, value in trailers.items()}
        yield _envelope(_END, json.dumps(ended, ensure_ascii=False, separators=(",", ":")).encode())

    async def _messages(self, request: Request, method: Method, is_json: bool, place: Place) -> AsyncIterator[bytes]:
        """The messages of a stream's request."""
        most, kept = self._bodies.most_bytes, bytearray()
        count = 0
        async for part in chunks(request):
            kept += part
            while len(kept) >= 5:
                flags, length = kept[0], int.from_bytes(kept[1:5], "big")
                if length > most:
                    raise too_large(most)
                if len(kept) < 5 + length:
                    break
                body = bytes(kept[5 : 5 + length])
                del kept[: 5 + length]
                if flags & _COMPRESSED:
                    body = place.inflate(body)
                count += 1
                if count > 1 and not method.descriptor.client_streaming:
                    raise Failure.of(InvalidArgument({"body": f"{method.path} takes one message"}))
                yield self._upstream.checked(await self._read(method, is_json, body))
        if kept:
            raise Failure.of(InvalidArgument({"body": "ends within a message"}))
        if not count and not method.descriptor.client_streaming:
            raise Failure.of(InvalidArgument({"body": f"has no message; {method.path} takes one"}))


class _Reading:
    """The messages of a stream's request, and what they ended by: gRPC would keep that to itself."""

    def __init__(self, request: Request, messages: AsyncIterator[bytes]) -> None:
        self._request = request
        self._messages = messages
        self._gone: asyncio.Future[Any] | None = None
        self._call: Any = None
        self.failure: Failure | None = None

    def ends(self, call: Any) -> None:
        """Names the call that is to end when the caller goes."""
        self._call = call

    async def messages(self) -> AsyncIterator[bytes]:
        """The messages."""
        try:
            async for message in self._messages:
                yield message
        except ClientDisconnect:
            raise
        except Failure as error:
            self.failure = error
            raise
        except Exception as error:
            self.failure = Failure(unexpected(error, "a stream over HTTP"))
            raise
        self._gone = asyncio.ensure_future(self._request.receive())
        self._gone.add_done_callback(lambda done: done.cancelled() or self._call.cancel())

    def close(self) -> None:
        """Looks no longer whether the caller goes."""
        if self._gone is not None:
            self._gone.cancel()


class _Streaming(Response):
    """Sends what comes. Starlette's own listens to the request meanwhile, whose messages would be lost."""

    def __init__(self, parts: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The interface of ASGI."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _is_json(request: Request, kinds: dict[str, bool], method: Method) -> bool:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in kinds:
        takes = ", ".join(kinds)
        why = f"{method.path} takes {takes}, not {given[:80] or 'a request without a content type'}"
        raise Failure.plain(code_pb2.UNKNOWN, why, 415, accept_post=takes)
    return kinds[given]


def _check_version(version: str) -> None:
    if version != "1":
        why = {"connect-protocol-version": f"is {version[:20]!r}, and 1 is spoken"}
        raise Failure.of(InvalidArgument(why))


def _timeout_s(request: Request) -> float | None:
    given = request.headers.get("connect-timeout-ms")
    if given is None:
        return None
    if not _TIMEOUT.fullmatch(given):
        raise Failure.of(InvalidArgument({"connect-timeout-ms": "is no number of milliseconds of at most ten digits"}))
    return int(given) / 1000


def _envelope(flags: int, content: bytes) -> bytes:
    return bytes([flags]) + len(content).to_bytes(4, "big") + content
