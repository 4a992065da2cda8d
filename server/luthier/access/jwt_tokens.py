"""JSON Web Tokens, verified by the public keys of whoever issues them.

What a token says of how it is to be verified is not believed: the algorithms are those of the key that its `kid` names,
all of them asymmetric, and no URL in it is followed.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.error import HTTPError, URLError

import jwt
import structlog

from luthier.access.principal import PATTERN, Principal, Role, Scope
from luthier.errors import Unauthenticated, Unavailable

log = structlog.get_logger()

PREFIX = "jwt:"
"""What the name of whom a token names begins with, so that nobody takes the name of a static token's bearer."""

LEEWAY_S = 30.0
"""By how much clocks may differ."""

_FAMILIES = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
_SUBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/@|-]{0,127}")
_TIMEOUT_S = 5.0
_MOST_BYTES = 2**20
_UNKNOWN_EVERY_S = 60.0
"""Least seconds between two looks for a key that is not known."""
_ANYWAY_EVERY_S = 900.0
"""Seconds between looks for keys that were taken back."""
_FAILED_EVERY_S = 10.0


class BadKeys(Exception):
    """What was found is no set of keys to verify tokens by."""


@dataclass(frozen=True)
class Key:
    """A public key and the algorithms that it may be used with."""

    key: Any
    algorithms: Sequence[str]


class KeySet:
    """Keys from a file or from an https URL. The last good ones are kept."""

    def __init__(self, source: str, trust: ssl.SSLContext | None = None) -> None:
        """`trust` is whom the URL's certificate may be from; None: those whom this machine trusts."""
        self.source = source
        self._trust = trust
        self._keys: Mapping[str, Key] = {}
        self._read: Any = None
        self._loaded = False
        self._next = 0.0
        self._missed = threading.Event()
        self._last_miss = float("-inf")
        self.generation = 0
        """Counts the sets there were."""

    def get(self, kid: str | None) -> Key:
        """The key of a name; of the only key there is the name may be left out.

        Raises Unavailable where it may be known in a moment, Unauthenticated where it is not.
        """
        keys = self._keys
        if kid is None and len(keys) == 1:
            return next(iter(keys.values()))
        if kid is not None and kid in keys:
            return keys[kid]
        if not self._loaded:
            raise Unavailable("the keys that tokens are verified by could not be fetched yet")
        if kid is not None and time.monotonic() - self._last_miss >= _UNKNOWN_EVERY_S:
            # Fetched by another thread: no thread that predicts waits for somebody else's server.
            self._last_miss = time.monotonic()
            self._missed.set()
        if self._missed.is_set():
            raise Unavailable("the keys that tokens are verified by are being fetched; try again")
        raise Unauthenticated("no such key")

    def look(self, at: float | None = None) -> None:
        """Reads the keys again where they are due or a file has changed. Failures are logged."""
        at = time.monotonic() if at is None else at
        try:
            if self.is_url:
                if at >= self._next or self._missed.is_set():
                    self._next = at + _FAILED_EVERY_S
                    self.load()
                    self._next = at + _ANYWAY_EVERY_S
            elif self._stamp() != self._read:
                self.load()
        except (BadKeys, OSError) as error:
            log.error("keys unreadable", source=self.source, why=str(error), kept=len(self._keys))
        finally:
            self._missed.clear()

    def load(self) -> None:
        """Reads the keys; raises BadKeys and OSError, and then those before stay."""
        if self.is_url:
            content = _fetch(self.source, self._trust)
        else:
            # A file that is bad is not read again until it changes.
            self._read = self._stamp()
            content = Path(self.source).read_bytes()
        keys = parse(content)
        self._keys, self._loaded = keys, True
        self.generation += 1
        log.info("keys read", source=self.source, keys=sorted(self._keys))

    @property
    def is_url(self) -> bool:
        """Whether they come from elsewhere."""
        return self.source.startswith("https://")

    def _stamp(self) -> tuple[int, int, int]:
        stat = Path(self.source).stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


class JwtTokens:
    """Verifies tokens for one audience."""

    def __init__(self, keys: KeySet, audience: str, issuer: str) -> None:
        """`issuer` may be empty: then any will do that holds a key."""
        self.keys = keys
        self._audience = audience
        self._issuer = issuer or None

    def verify(self, token: str) -> Principal:
        """Whom a token names; raises Unauthenticated, whose text is for the log, and Unavailable."""
        try:
            header = jwt.get_unverified_header(token)
            key = self.keys.get(header.get("kid"))
            claims = jwt.decode(
                token,
                key.key,
                algorithms=list(key.algorithms),
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"{type(error).__name__}") from None
        return _principal(claims)


def looks_like(token: str) -> bool:
    """Whether a token is one of these, as far as its form says."""
    return token.count(".") == 2


def parse(content: bytes) -> Mapping[str, Key]:
    """The keys of a JWKS document (RFC 7517) that can verify; raises BadKeys where there are none."""
    try:
        found = json.loads(content)["keys"]
        keys = {str(one.get("kid", "")): key for one in found if (key := _key(one)) is not None}
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
        raise BadKeys(f"it is no JSON Web Key Set: {type(error).__name__}") from None
    if not keys:
        raise BadKeys(f"it has no public key of the kinds {', '.join(_FAMILIES)} to verify signatures by")
    return keys


def _key(one: Mapping[str, Any]) -> Key | None:
    """A key; None for one that is for something else, such as a secret shared by all who verify."""
    family = _FAMILIES.get(one["kty"])
    declared = one.get("alg")
    if family is None or one.get("use", "sig") != "sig" or "verify" not in one.get("key_ops", ["verify"]):
        return None
    algorithms = [name for name in family if declared in (None, name)]
    if not algorithms or "d" in one:
        return None
    return Key(jwt.PyJWK(dict(one), algorithm=algorithms[0]).key, algorithms)


def _principal(claims: Mapping[str, Any]) -> Principal:
    subject, role = claims["sub"], claims.get("luthier_role")
    if not (isinstance(subject, str) and _SUBJECT.fullmatch(subject)):
        raise Unauthenticated("its subject is no name")
    try:
        held = Role.NONE if role is None else Role.of(str(role))
    except ValueError:
        raise Unauthenticated("its luthier_role is no role") from None
    return Principal(
        PREFIX + subject,
        held,
        Scope(_patterns(claims, "luthier_models")),
        Scope(_patterns(claims, "luthier_datasets")),
        expires=float(claims["exp"]) + LEEWAY_S,
    )


def _patterns(claims: Mapping[str, Any], name: str) -> Sequence[str]:
    value = claims.get(name, "*")
    patterns = value.split() if isinstance(value, str) else value
    if isinstance(patterns, list) and all(isinstance(one, str) and PATTERN.fullmatch(one) for one in patterns):
        return patterns
    raise Unauthenticated(f"its {name} are no patterns")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Goes nowhere but where the operator said."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> NoReturn:
        """Refuses."""
        raise HTTPError(req.full_url, code, "redirects are not followed", headers, fp)


def _fetch(url: str, trust: ssl.SSLContext | None) -> bytes:
    # No handler for http, ftp, file or proxies of the environment.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPSHandler(context=trust or ssl.create_default_context()),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Stay(),
    ):
        opener.add_handler(handler)
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            content: bytes = answer.read(_MOST_BYTES + 1)
    except (URLError, HTTPException) as error:
        raise BadKeys(f"{url} gives none: {error}") from None
    if len(content) > _MOST_BYTES:
        raise BadKeys(f"{url} gives more than {_MOST_BYTES} bytes")
    return content
