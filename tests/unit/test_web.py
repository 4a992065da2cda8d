"""Parts of the HTTP front whose limits a real server would take long to reach."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from starlette.requests import Request
from starlette.types import Message
from structlog.testing import capture_logs

from luthier.errors import InvalidArgument
from luthier.web import bodies, tensors
from luthier.web.application import Application
from luthier.web.bodies import Bodies
from luthier.web.failures import Failure
from luthier.web.upstream import metadata_of

Receive = Callable[[], Awaitable[Message]]


def scope(path: str = "/x", method: str = "POST", **headers: str) -> dict[str, Any]:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    found = {"type": "http", "method": method, "path": path, "headers": given, "query_string": b"", "state": {}}
    return found | {"server": ("x", 1), "client": ("::1", 7), "scheme": "http", "http_version": "1.1"}


def sending(*parts: bytes, then_s: float = 0) -> Receive:
    """A body of parts, after which nothing comes for a while."""
    left = list(parts)

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left or then_s)}
        await asyncio.sleep(then_s)
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive


async def read(taking: Bodies, receive: Receive, **headers: str) -> bytes:
    with taking.place() as place:
        return await place.read(Request(scope(**headers), receive))


def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PATIENCE_S", 0.05)
    with pytest.raises(Failure) as given_up:
        asyncio.run(read(Bodies(100, 100), sending(b"a", then_s=5)))
    assert (given_up.value.http, given_up.value.headers["connection"]) == (408, "close")
    # Each part gives it more time.
    monkeypatch.setattr(bodies, "RATE", 10)
    assert asyncio.run(read(Bodies(100, 100), sending(b"a" * 20, then_s=0.2))) == b"a" * 20


def test_large_requests_share_a_room() -> None:
    async def two() -> None:
        taking = Bodies(10, 15)
        with taking.place() as first:
            assert await first.read(Request(scope(), sending(b"a" * 10))) == b"a" * 10
            with pytest.raises(Failure) as refused:
                await read(taking, sending(b"b" * 10))
            assert (refused.value.http, refused.value.headers["retry-after"]) == (503, "1")
        assert await read(taking, sending(b"b" * 10)) == b"b" * 10

    asyncio.run(two())


@pytest.mark.parametrize(("path", "key"), [("/a.Service/Method", "message"), ("/v2", "error")])
def test_what_nobody_foresaw_gets_an_id(path: str, key: str) -> None:
    class Broken:
        pool = descriptor_pool.Default()

        @property
        def methods(self) -> Any:
            raise RuntimeError("a secret of /srv/luthier")

        begin = methods

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    application = Application(Broken(), 100, [])  # type: ignore[arg-type]
    given = scope(path, "GET" if path == "/v2" else "POST")
    with capture_logs() as logged:
        asyncio.run(application(given, sending(b"{}"), send))
    assert sent[0]["status"] == 500
    said = json.loads(sent[1]["body"])[key]
    assert said.startswith("internal error ")
    assert "secret" not in sent[1]["body"].decode()
    assert said.split()[2].rstrip(";") == logged[0]["error_id"]


def test_what_the_front_says_of_callers_is_not_theirs_to_say() -> None:
    headers = {"luthier_front_peer": "ipv4:6.6.6.6:6", "luthier_front_certificate_bin": "AQI", "luthier_key": "k"}
    assert metadata_of(scope(cookie="a=b", grpc_timeout="1S", host="x", authorization="Bearer t", **headers)) == [
        ("authorization", "Bearer t"),
        ("luthier-key", "k"),
        ("luthier-front-peer", "ipv6:[::1]:7"),
    ]


def test_retries_and_challenges_are_said_in_headers() -> None:
    assert Failure.of(InvalidArgument({"a": "b"})).headers == {}
    assert Failure.plain(16, "who?").headers == {"www-authenticate": "Bearer"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("datatype", "raw", "why"),
    [("FP32", b"\x00\x00\x80\x7f", "infinite numbers"), ("BYTES", b"\x01\x00\x00\x00\xff", "bytes that are no text")],
)
def test_outputs_that_json_cannot_say_are_no_json(datatype: str, raw: bytes, why: str) -> None:
    with pytest.raises(Failure, match=why):
        tensors.to_json("x", datatype, raw)
