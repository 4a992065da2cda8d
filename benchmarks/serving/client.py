"""The one client that drives every server: requests that are serialised already, so many of them in flight.

It speaks to gRPC's C core where Python's own client does. That one answers through futures, with locks and a thread
that wakes another, and takes half as much again of the processors that the server needs; this one is a loop on one
thread for each connection. grpcio calls these names private: the environment's constraints hold the version that they
are known of.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import numpy as np
from grpc._cython import cygrpc

CALL_S = 60.0
"""The deadline of a call."""
_OK = 0
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Otherwise channels to one address share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class Load:
    """What came of a stretch of calls."""

    calls: int
    seconds: float
    p50_ms: float
    p99_ms: float
    client_cpu_s: float

    @property
    def per_s(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


class Channel:
    """Connections to a server, for one kind of call, with TLS where it has credentials for it."""

    def __init__(
        self,
        address: str,
        method: str,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: tuple[tuple[str, str], ...] = (),
        connections: int = 1,
    ) -> None:
        self._connections = [_Connection(address, method, credentials, metadata) for _ in range(connections)]

    def close(self) -> None:
        """Closes the connections."""
        for connection in self._connections:
            connection.close()

    def call(self, request: bytes) -> bytes:
        """One answer; raises SystemExit where the server has none."""
        return self._connections[0].call(request)

    def drive(self, requests: Sequence[bytes], in_flight: int, seconds: float) -> Load:
        """Keeps so many calls in flight for so long, shared by the connections; waits for the last of them."""
        connections = self._connections[:in_flight]
        shares = [len(range(place, in_flight, len(connections))) for place in range(len(connections))]
        gc.disable()
        cpu, started = time.process_time(), time.perf_counter()
        try:
            with ThreadPoolExecutor(len(connections)) as threads:
                found = [
                    threads.submit(connection.drive, requests, share, seconds)
                    for connection, share in zip(connections, shares, strict=True)
                ]
            latencies = [latency for each in found for latency in each.result()]
        finally:
            gc.enable()
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
        p50, p99 = np.percentile(latencies, [50, 99]) * 1000
        return Load(len(latencies), elapsed, float(p50), float(p99), cpu)


class _Connection:
    """One connection, driven by one thread at a time."""

    def __init__(
        self,
        address: str,
        method: str,
        credentials: grpc.ChannelCredentials | None,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        self._channel = cygrpc.Channel(address.encode(), _OPTIONS, credentials and credentials._credentials)
        self._method = method.encode()
        self._metadata = metadata or None

    def close(self) -> None:
        self._channel.close(cygrpc.StatusCode.cancelled, "closed")

    def call(self, request: bytes) -> bytes:
        self._send(request, 0)
        answer: bytes = self._receive()[1]
        return answer

    def drive(self, requests: Sequence[bytes], in_flight: int, seconds: float) -> list[float]:
        """The seconds that each call took."""
        latencies: list[float] = []
        sent = [0.0] * in_flight
        count, open_calls = 0, 0
        clock = time.perf_counter
        started = clock()
        for slot in range(in_flight):
            sent[slot] = clock()
            self._send(requests[count % len(requests)], slot)
            count, open_calls = count + 1, open_calls + 1
        while open_calls:
            slot, _ = self._receive()
            now = clock()
            latencies.append(now - sent[slot])
            if now - started < seconds:
                sent[slot] = now
                self._send(requests[count % len(requests)], slot)
                count += 1
            else:
                open_calls -= 1
        return latencies

    def _send(self, request: bytes, slot: int) -> None:
        operations = (
            cygrpc.SendInitialMetadataOperation(self._metadata, 0),
            cygrpc.SendMessageOperation(request, 0),
            cygrpc.SendCloseFromClientOperation(0),
            cygrpc.ReceiveInitialMetadataOperation(0),
            cygrpc.ReceiveMessageOperation(0),
            cygrpc.ReceiveStatusOnClientOperation(0),
        )
        deadline = time.time() + CALL_S
        self._channel.integrated_call(0, self._method, None, deadline, (), None, ((operations, slot),), None)

    def _receive(self) -> tuple[int, bytes]:
        """The slot of the next call that ends, and its answer."""
        event = self._channel.next_call_event()
        message, status = event.batch_operations[4], event.batch_operations[5]
        if status.code() != _OK:
            raise SystemExit(f"{self._method.decode()} failed with {status.code()}: {status.details()}")
        return event.tag, message.message()
