"""Reading requests' bodies: no more than may be, no slower, and no more at once than there is room for."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from google.rpc import code_pb2
from starlette.requests import Request

from luthier.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from luthier.web.failures import Failure
from luthier.web.upstream import too_large

PATIENCE_S = 20.0
"""How long a body may take in any case; beyond, it has to come at the rate."""
RATE = 16 * 1024
"""Bytes a second."""
_DISCARDED = 4
"""A body that is too large by less than so many times is read to its end, so that its sender sees the answer."""

ENCODINGS = "gzip, identity"


class Bodies:
    """Takes requests' bodies in."""

    def __init__(self, most_bytes: int, room: int) -> None:
        """`most_bytes` are taken of one body, `room` bytes of all that are being worked on."""
        self.most_bytes = most_bytes
        self._room = room
        self._taken = 0

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Where one request's body is kept until the request is over."""
        place = Place(self)
        try:
            yield place
        finally:
            self._taken -= place.taken

    def take(self, size: int) -> None:
        """Makes room, or raises Failure."""
        if self._taken + size > self._room:
            raise Failure.of(ResourceExhausted("too many large requests at once", retry_s=1.0), 503)
        self._taken += size


class Place:
    """The room that one request takes."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.taken = 0

    async def read(self, request: Request) -> bytes:
        """The whole body, decompressed where it came compressed; raises ClientDisconnect where its sender goes."""
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        check_encoding(encoding, "content-encoding")
        most, size, parts = self._bodies.most_bytes, 0, list[bytes]()
        async for part in chunks(request):
            size += len(part)
            if size <= most:
                self.take(len(part))
                parts.append(part)
            elif size > _DISCARDED * most:
                break
        if size > most:
            failure = too_large(most)
            if size > _DISCARDED * most:
                failure.headers["connection"] = "close"
            raise failure
        body = b"".join(parts)
        return self.inflate(body) if encoding == "gzip" else body

    def inflate(self, body: bytes) -> bytes:
        """What was compressed, if it is no longer than a body may be."""
        most, inflating, found = self._bodies.most_bytes, zlib.decompressobj(wbits=31), b""
        if not body:
            return body
        with suppress(zlib.error):
            found = inflating.decompress(body, most + 1)
        if len(found) > most:
            raise too_large(most)
        if not inflating.eof or inflating.unused_data:
            raise Failure.of(InvalidArgument({"body": "is said to be compressed by gzip, and is not"}))
        self.take(len(found))
        return found

    def take(self, size: int) -> None:
        """Makes room, or raises Failure."""
        self._bodies.take(size)
        self.taken += size


async def chunks(request: Request) -> AsyncIterator[bytes]:
    """A body's parts as they come; raises Failure where they come too slowly, or end too early."""
    due = time.monotonic() + PATIENCE_S
    parts = request.stream()
    while True:
        try:
            async with asyncio.timeout(max(0.0, due - time.monotonic())):
                part = await anext(parts, None)
        except TimeoutError:
            error = DeadlineExceeded("the request came too slowly")
            raise Failure.of(error, 408, connection="close") from None
        if part is None:
            return
        due += len(part) / RATE
        yield part


def check_encoding(encoding: str, header: str) -> None:
    """Raises Failure for a compression that is not spoken."""
    if encoding not in ("", "identity", "gzip"):
        why = f"{header}: {encoding[:40]!r} is not spoken; send {ENCODINGS}"
        raise Failure.plain(code_pb2.UNIMPLEMENTED, why, accept_encoding=ENCODINGS)
