"""Knows callers by what they bring: a plugin's answer first, then static tokens, then JSON Web Tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import sqlalchemy as sa
import structlog

from luthier.access.policy_file import BadPolicy, PolicyFile
from luthier.access.principal import Credentials, Principal
from luthier.access.tokens import Tokens, digest_of
from luthier.errors import Unauthenticated

if TYPE_CHECKING:
    from luthier.access.jwt_tokens import JwtTokens

log = structlog.get_logger()

Ask: TypeAlias = Callable[[Credentials], Principal | None]
"""Asks plugins who calls."""

_MOST_KNOWN = 10_000
_MOST_CHARACTERS = 16_384
_LOOK_S = 0.25
"""Seconds between two looks at the files of policy and keys."""
_NOTE_S = 60.0
_LOG_S = 1.0


class CannotOpen(Exception):
    """What keeps a server from telling its callers apart, a line for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class _Known(NamedTuple):
    """A token that was verified."""

    stamp: int
    found: Principal
    """As its credential says."""
    principal: Principal
    """As the policy file allows."""
    is_static: bool


class Gate:
    """Says who calls. Thread-safe; a token that was seen before costs two digests' look-ups and no lock."""

    def __init__(
        self, tokens: Tokens, policy: PolicyFile, jwt: JwtTokens | None = None, ask: Ask | None = None
    ) -> None:
        """`ask` asks plugins, where there are any."""
        self._tokens = tokens
        self._policy = policy
        self._jwt = jwt
        self._ask = ask
        self._known: dict[bytes, _Known] = {}
        self._refusals = _Refusals()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)

    @property
    def asks_plugins(self) -> bool:
        """Whether there are plugins that say who calls."""
        return self._ask is not None

    def start(self) -> None:
        """Learns the tokens, and begins to look at files for changes."""
        self._tokens.refresh()
        self._thread.start()

    def stop(self) -> None:
        """Ends that."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def principal(self, credentials: Credentials) -> Principal:
        """Who calls; raises Unauthenticated, which says to a stranger nothing but that."""
        if self._ask is not None:
            found = self._ask(credentials)
            if found is not None:
                return self._policy.bound(found)
        token = credentials.token
        if not token:
            raise Unauthenticated("this server asks for a token: `authorization: Bearer TOKEN` in the metadata")
        try:
            return self._by_token(token)
        except Unauthenticated as error:
            self._refusals.note(error.message, credentials.peer)
            raise Unauthenticated("the token is not valid, or no longer") from None

    def _by_token(self, token: str) -> Principal:
        if len(token) > _MOST_CHARACTERS:
            raise Unauthenticated("too long")
        digest, at = digest_of(token), time.time()
        stamp = self._stamp()
        found = self._tokens.find(digest, at)
        known = self._known.get(digest)
        if known is not None and known.stamp == stamp:
            same = known.found is found if known.is_static else found is None and at < known.found.expires
            if same:
                return known.principal
        is_static = found is not None
        if found is None:
            found = self._by_jwt(token)
        principal = self._policy.bound(found)
        while len(self._known) >= _MOST_KNOWN:
            self._known.pop(next(iter(self._known)), None)
        self._known[digest] = _Known(stamp, found, principal, is_static)
        return principal

    def _by_jwt(self, token: str) -> Principal:
        if self._jwt is None or token.count(".") != 2:
            raise Unauthenticated("no such token, or one that was revoked or has expired")
        return self._jwt.verify(token)

    def _stamp(self) -> int:
        """Another number whenever policy or keys are others."""
        return self._policy.generation + (self._jwt.keys.generation if self._jwt is not None else 0)

    def _run(self) -> None:
        noted = time.monotonic()
        while not self._stop.wait(_LOOK_S):
            self._policy.look()
            if self._jwt is not None:
                self._jwt.keys.look()
            if time.monotonic() - noted >= _NOTE_S:
                noted = time.monotonic()
                self._note_uses()
        self._note_uses()

    def _note_uses(self) -> None:
        try:
            self._tokens.note_uses()
        except sa.exc.OperationalError as error:
            log.warning("database unreachable", error=type(error.orig).__name__)


class _Refusals:
    """Logs why tokens were refused, at most one a second, so that strangers cannot fill the log."""

    def __init__(self) -> None:
        self._next = 0.0
        self._left_out = 0

    def note(self, why: str, peer: str) -> None:
        at = time.monotonic()
        if at < self._next:
            self._left_out += 1
            return
        self._next = at + _LOG_S
        left_out, self._left_out = self._left_out, 0
        log.info("token refused", why=why, peer=peer, left_out=left_out)


def make(
    tokens: Tokens, ask: Ask | None, *, policy: Path | None, jwt_keys: str, jwt_audience: str, jwt_issuer: str
) -> Gate:
    """A gate as the settings say; raises CannotOpen with all that is wrong."""
    problems: list[str] = []
    file = PolicyFile(None)
    try:
        file = PolicyFile(policy)
    except BadPolicy as error:
        problems += [f"--policy {policy}: {each}" for each in error.problems]
    jwt = None
    if jwt_keys:
        # Its libraries take a tenth of a second, which only those pay who want it.
        from luthier.access.jwt_tokens import BadKeys, JwtTokens, KeySet

        keys = KeySet(jwt_keys)
        try:
            keys.load()
        except (BadKeys, OSError) as error:
            why = str(error) if isinstance(error, BadKeys) else error.strerror
            if keys.is_url:
                # Who issues tokens may be away for a while; a server that starts meanwhile goes on asking.
                log.error("keys unreadable", source=jwt_keys, why=why, kept=0)
            else:
                problems.append(f"--jwt-keys {jwt_keys}: {why}")
        jwt = JwtTokens(keys, jwt_audience, jwt_issuer)
    if problems:
        raise CannotOpen(problems)
    return Gate(tokens, file, jwt, ask)
