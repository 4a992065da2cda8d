"""Static tokens: random, kept as digests, known by heart in each process so that no call asks the database."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from luthier.access.principal import Principal, Role, Scope
from luthier.database import Database, bump, insert_or_skip, now, tokens
from luthier.errors import NotFound

Row = sa.Row[tuple[Any, ...]]

PREFIX = "luthier_"
"""What tokens begin with, so that people and scanners of leaked secrets know one when they see it."""

ADMIN_FILE = "admin.token"

_FIRST = "0" * 32
"""Id of the token that a server makes for itself: of servers that start at once one makes it."""

_USES_EVERY_S = 60.0


class Tokens:
    """Static tokens in the database. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._live: dict[bytes, tuple[str, Principal]] = {}
        self._used: dict[str, float] = {}
        self._refreshing = threading.Lock()

    def create(
        self,
        principal: str,
        role: Role,
        models: Sequence[str] = (),
        datasets: Sequence[str] = (),
        expire_time: float | None = None,
    ) -> tuple[Row, str]:
        """Makes a token; returns its row and its secret, which is nowhere else."""
        secret = _secret()
        row = _row(uuid.uuid4().hex, secret, principal, role, models, datasets, expire_time)
        with self._database.write() as connection:
            connection.execute(tokens.insert().values(row))
            bump(connection, "tokens")
            made = _get(connection, row["id"])
        self.refresh()
        return made, secret

    def page(self, after: tuple[float, str] | None, size: int) -> Sequence[Row]:
        """Rows of tokens, newest first, from behind the given time and id on."""
        query = sa.select(tokens).order_by(tokens.c.create_time.desc(), tokens.c.id).limit(size)
        if after:
            time, id = after
            query = query.where((tokens.c.create_time < time) | ((tokens.c.create_time == time) & (tokens.c.id > id)))
        with self._database.read() as connection:
            return connection.execute(query).all()

    def revoke(self, id: str) -> Row:
        """Ends a token; raises NotFound."""
        ended = tokens.update().where(tokens.c.id == id, tokens.c.revoke_time.is_(None)).values(revoke_time=now())
        with self._database.write() as connection:
            connection.execute(ended)
            bump(connection, "tokens")
            revoked = _get(connection, id)
        self.refresh()
        return revoked

    def refresh(self) -> None:
        """Learns which tokens there are. Called whenever the revision of `tokens` is another."""
        query = sa.select(tokens).where(tokens.c.revoke_time.is_(None))
        # What was read first is not to be believed last.
        with self._refreshing:
            with self._database.read() as connection:
                rows = connection.execute(query).all()
            self._live = {row.digest: (row.id, _principal(row)) for row in rows}

    def find(self, digest: bytes, at: float) -> Principal | None:
        """Whose token has a digest at a time, unless it was revoked or has expired."""
        found = self._live.get(digest)
        if found is None:
            return None
        id, principal = found
        if at >= principal.expires:
            return None
        self._used[id] = at
        return principal

    def note_uses(self) -> None:
        """Writes down when tokens were last used, to the minute."""
        used, self._used = self._used, {}
        if not used:
            return
        with self._database.write() as connection:
            for id, time in used.items():
                earlier = tokens.c.last_use_time.is_(None) | (tokens.c.last_use_time < time - _USES_EVERY_S)
                connection.execute(
                    tokens.update()
                    .where(tokens.c.id == id, earlier)
                    .values(last_use_time=time // _USES_EVERY_S * _USES_EVERY_S)
                )

    def bootstrap(self, home: Path) -> Path | None:
        """Makes the first token where there was never any, an administrator's, and returns the file that it is in."""
        with self._database.read() as connection:
            if connection.execute(sa.select(tokens.c.id).limit(1)).first() is not None:
                return None
        secret, path = _secret(), home / ADMIN_FILE
        # On disk before it counts: a token that nobody knows would be the last that can be made.
        partial = home / f".{ADMIN_FILE}.{os.getpid()}"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(f"{secret}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            with self._database.write() as connection:
                row = _row(_FIRST, secret, "admin", Role.ADMIN, (), (), None)
                if not insert_or_skip(connection, tokens, row):
                    return None
                partial.rename(path)
                bump(connection, "tokens")
        finally:
            partial.unlink(missing_ok=True)
        return path


def digest_of(token: str) -> bytes:
    """What a token is known by. Its 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(token.encode()).digest()


def _secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _row(
    id: str,
    secret: str,
    principal: str,
    role: Role,
    models: Sequence[str],
    datasets: Sequence[str],
    expire_time: float | None,
) -> dict[str, Any]:
    return {
        "id": id,
        "principal": principal,
        "digest": digest_of(secret),
        "role": int(role),
        "models": " ".join(models) or "*",
        "datasets": " ".join(datasets) or "*",
        "create_time": now(),
        "expire_time": expire_time,
    }


def _principal(row: Row) -> Principal:
    expires = float("inf") if row.expire_time is None else row.expire_time
    models, datasets = Scope(row.models.split()), Scope(row.datasets.split())
    return Principal(row.principal, Role(row.role), models, datasets, expires=expires)


def _get(connection: sa.Connection, id: str) -> Row:
    row = connection.execute(sa.select(tokens).where(tokens.c.id == id)).first()
    if row is None:
        raise NotFound(f"tokens/{id}")
    return row
