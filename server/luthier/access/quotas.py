"""How much a principal may use: rates in each process, what it holds in the database."""

from __future__ import annotations

import threading
import time
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from luthier.access.principal import Limits, Principal, acting
from luthier.database import dataset_versions, operations, uploads
from luthier.errors import QuotaExceeded
from luthier.v1.operation_pb2 import OperationMetadata

_MOST_PRINCIPALS = 10_000
_LOCK = 0x9007A
"""The number of the lock under which PostgreSQL counts what a principal holds."""

_ENDED = (OperationMetadata.STATE_SUCCEEDED, OperationMetadata.STATE_FAILED, OperationMetadata.STATE_CANCELLED)
_BUSY_S = 60.0
"""When to try again where an operation has to end first."""


class Bucket:
    """Fills steadily up to a most, and is drawn from; drawn below zero it gives nothing until it is above."""

    def __init__(self, most: float, seconds: float, at: float) -> None:
        """It fills from nothing in `seconds`."""
        self._most = most
        self._rate = most / seconds
        self._level = most
        self._at = at
        self._lock = threading.Lock()

    def wait_s(self, at: float, least: float) -> float:
        """Seconds until there is as much as `least`; 0 where there is."""
        with self._lock:
            self._fill(at)
            return max(0.0, (least - self._level) / self._rate)

    def draw(self, amount: float, at: float) -> None:
        """Takes out an amount."""
        with self._lock:
            self._fill(at)
            self._level -= amount

    def draw_if(self, amount: float, at: float) -> float:
        """Takes out an amount where there is as much, and returns 0; else seconds until there is."""
        with self._lock:
            self._fill(at)
            if self._level < amount:
                return (amount - self._level) / self._rate
            self._level -= amount
            return 0.0

    def _fill(self, at: float) -> None:
        if at > self._at:
            self._level = min(self._most, self._level + (at - self._at) * self._rate)
            self._at = at


class Rates:
    """Buckets of this process, two for each principal that has such a quota. Thread-safe."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[Limits, Bucket | None, Bucket | None]] = {}

    def admit(self, principal: Principal, request: Any, *, counts: bool = True) -> None:
        """Takes a request of a principal into account; raises QuotaExceeded.

        A request in the midst of a stream may not count as one, but its bytes do.
        """
        limits = principal.limits
        if not (limits.requests_per_minute or limits.bytes_per_day):
            return
        at = time.monotonic()
        requests, bytes = self._of(principal, at)
        # A message larger than the quota of a day passes, and then nothing for longer.
        if bytes is not None and (wait_s := bytes.wait_s(at, 0.0)):
            raise _exceeded(principal, "bytes_per_day", f"{limits.bytes_per_day} bytes a day", wait_s)
        if requests is not None and counts and (wait_s := requests.draw_if(1.0, at)):
            raise _exceeded(principal, "requests_per_minute", f"{limits.requests_per_minute} a minute", wait_s)
        if bytes is not None:
            bytes.draw(size_of(request), at)

    def note(self, principal: Principal, response: Any) -> None:
        """Takes an answer into account."""
        if principal.limits.bytes_per_day:
            at = time.monotonic()
            _, bytes = self._of(principal, at)
            if bytes is not None:
                bytes.draw(size_of(response), at)

    def _of(self, principal: Principal, at: float) -> tuple[Bucket | None, Bucket | None]:
        limits = principal.limits
        found = self._buckets.get(principal.name)
        if found is None or found[0] != limits:
            if len(self._buckets) >= _MOST_PRINCIPALS:
                self._buckets.pop(next(iter(self._buckets)), None)
            requests = Bucket(limits.requests_per_minute, 60.0, at) if limits.requests_per_minute else None
            bytes = Bucket(limits.bytes_per_day, 86_400.0, at) if limits.bytes_per_day else None
            found = self._buckets.setdefault(principal.name, (limits, requests, bytes))
            if found[0] != limits:
                self._buckets[principal.name] = found = (limits, requests, bytes)
        return found[1], found[2]


def size_of(message: Any) -> int:
    """Bytes of a message as it travels, within some of its framing."""
    if isinstance(message, Message):
        return message.ByteSize()
    inner = message.message
    apart = message.raw[: len(message.raw) - len(inner.raw_input_contents)]
    return int(inner.ByteSize()) + sum(len(part) for part in apart)


def check_operations(connection: sa.Connection, beside: str) -> None:
    """Raises QuotaExceeded where whoever calls has as many operations that have not ended as it may, beside a new one.

    In the transaction that adds one: of two at once, one sees the other.
    """
    principal = acting.get()
    if principal is None or not principal.limits.operations:
        return
    _lock(connection, principal)
    query = sa.select(sa.func.count()).where(
        operations.c.principal == principal.name, operations.c.state.not_in(_ENDED), operations.c.id != beside
    )
    if connection.execute(query).scalar_one() >= principal.limits.operations:
        raise _exceeded(principal, "operations", f"{principal.limits.operations} operations at once", _BUSY_S)


def check_storage(connection: sa.Connection, more_bytes: int) -> None:
    """Raises QuotaExceeded where whoever calls would hold more than it may. In the transaction that adds them."""
    principal = acting.get()
    if principal is None or not principal.limits.storage_bytes:
        return
    _lock(connection, principal)
    held = sum(
        connection.execute(
            sa.select(sa.func.coalesce(sa.func.sum(table.c.size_bytes), 0)).where(table.c.principal == principal.name)
        ).scalar_one()
        for table in (uploads, dataset_versions)
    )
    if held + more_bytes > principal.limits.storage_bytes:
        what = f"{principal.limits.storage_bytes} bytes of uploads and data sets, of which {held} are taken"
        raise _exceeded(principal, "storage_bytes", what, 0.0)


def _lock(connection: sa.Connection, principal: Principal) -> None:
    if connection.dialect.name == "postgresql":
        key = sa.func.hashtext(principal.name)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.cast(_LOCK, sa.Integer), key)))


def _exceeded(principal: Principal, quota: str, what: str, retry_s: float) -> QuotaExceeded:
    return QuotaExceeded(f"the quota of {principal.name} is {what}", retry_s=retry_s, quota=quota)
