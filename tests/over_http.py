"""Requests over HTTP as they go over the wire, and what comes back."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scrapes import wait_for_lines
from support import Server


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)

    def fields(self) -> dict[str, str]:
        """What is wrong, by field."""
        [bad] = [detail for detail in self.json["details"] if detail["type"] == "google.rpc.BadRequest"]
        return {one["field"]: one["description"] for one in bad["debug"]["fieldViolations"]}


def address_of(server: Server) -> str:
    """Where a server listens for HTTP."""
    [line] = wait_for_lines(server, "http", 1)
    return line["address"]


def ask(
    address: str,
    path: str,
    body: bytes | str | None = None,
    method: str = "",
    context: ssl.SSLContext | None = None,
    **headers: str,
) -> Answer:
    """Sends one request; a body that is text is sent as JSON. Underscores of headers' names stand for `-`."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, str):
        body = body.encode()
        given = {"content-type": "application/json"} | given
    host, _, port = address.rpartition(":")
    kind = http.client.HTTPConnection if context is None else http.client.HTTPSConnection
    more: dict[str, Any] = {} if context is None else {"context": context}
    connection = kind(host, int(port), timeout=60, **more)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, given)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def call(address: str, method: str, message: Any, **more: Any) -> Answer:
    """Calls a method with a message as JSON."""
    return ask(address, f"/{method}", json.dumps(message), **more)
