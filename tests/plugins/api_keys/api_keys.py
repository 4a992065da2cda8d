"""A plugin that knows callers by keys in a file: `x-api-key` in the metadata, a line for each key.

    SHA-256 of the key   name   role   models, as patterns with commas between them

The variable API_KEYS names the file. It is read again when it changes.
"""

import hashlib
import os
from pathlib import Path

from luthier.access import Credentials, Principal, Role, Scope
from luthier.errors import Unauthenticated
from luthier.hookspecs import hookimpl


class Keys:
    """The keys of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = 0
        self._principals: dict[str, Principal] = {}

    @hookimpl
    def luthier_authenticate(self, credentials: Credentials) -> Principal | None:
        """Whose key came with a call; None for a call that brings none, which may have a token."""
        key = credentials.metadata.get("x-api-key")
        if key is None:
            return None
        changed = self._path.stat().st_mtime_ns
        if changed != self._changed:
            self._principals = dict(map(_principal, self._path.read_text().splitlines()))
            self._changed = changed
        try:
            return self._principals[hashlib.sha256(key.encode()).hexdigest()]
        except KeyError:
            raise Unauthenticated("the API key is not known") from None


def _principal(line: str) -> tuple[str, Principal]:
    digest, name, role, models = line.split()
    return digest, Principal(f"key:{name}", Role.of(role), models=Scope(models.split(",")))


plugin = Keys(Path(os.environ.get("API_KEYS", "api-keys.txt")))
