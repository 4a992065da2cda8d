"""Who changed what: a row for each call that changes something, written before its work begins."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from luthier.access.quotas import Bucket
from luthier.database import Database, audit, now

Row = sa.Row[tuple[Any, ...]]

STARTED = "STARTED"
"""What stands for the code while a call has not ended, and for good where the server died in it."""

_REFUSED_PER_MINUTE = 600
"""Refused calls that a process writes down. Further ones are in the log alone: strangers must not fill the disk."""
_LONGEST = 512


@dataclass(frozen=True)
class Asked:
    """Which calls to list."""

    principal: str = ""
    method: str = ""
    resource: str = ""
    start_time: float | None = None
    end_time: float | None = None


class Audit:
    """The log in the database. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._refused = Bucket(_REFUSED_PER_MINUTE, 60.0, now())

    def begin(self, principal: str, method: str, resource: str, request_id: str, peer: str) -> str:
        """Writes down that a call has begun, durably; returns its row's id."""
        return self._add(principal, method, resource, STARTED, request_id, peer)

    def end(self, id: str, code: str, resource: str) -> None:
        """Writes down how it ended."""
        with self._database.write() as connection:
            connection.execute(audit.update().where(audit.c.id == id).values(code=code, resource=_clean(resource)))

    def refused(self, principal: str, method: str, resource: str, code: str, request_id: str, peer: str) -> None:
        """Writes down a call that was not let in."""
        at = now()
        if not self._refused.draw_if(1.0, at):
            self._add(principal, method, resource, code, request_id, peer)

    def page(self, asked: Asked, after: tuple[float, str] | None, size: int) -> Sequence[Row]:
        """Rows, newest first, from behind the given time and id on."""
        query = sa.select(audit).order_by(audit.c.time.desc(), audit.c.id).limit(size)
        if after:
            time, id = after
            query = query.where((audit.c.time < time) | ((audit.c.time == time) & (audit.c.id > id)))
        if asked.principal:
            query = query.where(audit.c.principal == _clean(asked.principal))
        if asked.method:
            method = _clean(asked.method)
            ending = audit.c.method.endswith(f"/{method.lstrip('/')}", autoescape=True)
            query = query.where((audit.c.method == method) | ending)
        if asked.resource:
            listed = ", " + audit.c.resource + ", "
            query = query.where(listed.contains(f", {_clean(asked.resource)}, ", autoescape=True))
        if asked.start_time is not None:
            query = query.where(audit.c.time >= asked.start_time)
        if asked.end_time is not None:
            query = query.where(audit.c.time < asked.end_time)
        with self._database.read() as connection:
            return connection.execute(query).all()

    def forget(self, before: float) -> int:
        """Deletes what was written before a time; returns how many rows."""
        with self._database.write() as connection:
            return connection.execute(audit.delete().where(audit.c.time < before)).rowcount

    def _add(self, principal: str, method: str, resource: str, code: str, request_id: str, peer: str) -> str:
        id = uuid.uuid4().hex
        row = {
            "id": id,
            "time": now(),
            "principal": _clean(principal),
            "method": method,
            "resource": _clean(resource),
            "code": code,
            "request_id": request_id,
            "peer": peer,
        }
        with self._database.write() as connection:
            connection.execute(audit.insert().values(row))
        return id


def _clean(text: str) -> str:
    """A stranger's words, as a database takes them and people can read them."""
    return "".join(each if each.isprintable() else "?" for each in text[:_LONGEST])
