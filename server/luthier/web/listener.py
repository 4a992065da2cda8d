"""Connections of the HTTP front: how many, how long each may keep the server waiting, and TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.web.orders import CERTIFICATE

HEAD_S = 10.0
"""How long a caller gets for a request's first line and headers, and for a TLS handshake."""
IDLE_S = 75.0
"""How long a connection is kept for a next request: longer than proxies keep theirs, or they would send into it."""
STUCK_S = 30.0
"""How long a caller gets to take more of its answer, where it takes nothing."""
MOST_CONNECTIONS = 1024
"""Further ones are closed at once."""
MOST_HEAD_BYTES = 32 * 1024


class Connection(H11Protocol):
    """HTTP/1.1 to callers who may be slow on purpose: uvicorn itself waits for ever."""

    _head: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller has come."""
        super().connection_made(transport)
        if tls := transport.get_extra_info("ssl_object"):
            # What a connection knows, each of its requests has as its state.
            self.app_state = {CERTIFICATE: tls.getpeercert(binary_form=True)}
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        """A caller has sent something."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """A caller has gone."""
        super().connection_lost(exc)
        for timer in (self._head, self._stuck):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """More waits for the caller than is kept."""
        super().pause_writing()
        self._stuck = self.loop.call_later(STUCK_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The caller has taken it."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def _watch_head(self) -> None:
        """Ends the wait for a head once it is there, and begins one with the first byte of the next."""
        if self.conn.their_state is not h11.IDLE:
            if self._head is not None:
                self._head.cancel()
                self._head = None
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_S, self._close_late)

    def _close_late(self) -> None:
        self._head = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()


class Listener(uvicorn.Server):
    """Serves an application on a socket that listens already."""

    def __init__(self, app: ASGIApp, listening: socket.socket, context: ssl.SSLContext | None, drain_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                loop="asyncio",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(IDLE_S),
                h11_max_incomplete_event_size=MOST_HEAD_BYTES,
                timeout_graceful_shutdown=max(1, round(drain_s)),
            )
        )
        self._listening = listening
        self._context = context

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {"ssl": self._context, "ssl_handshake_timeout": HEAD_S} if self._context else {}
        self.servers = [await loop.create_server(self._connection, sock=self._listening, backlog=512, **tls)]
        self.started = True

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)
