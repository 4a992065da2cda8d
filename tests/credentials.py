"""Who issues tokens, good ones and bad ones, and channels that send them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "luthier"
ISSUER = "https://id.example.com"


class Issuer:
    """Signs JSON Web Tokens by a key on an elliptic curve, and has one of RSA."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.rsa = rsa.generate_private_key(65537, 2048)

    def jwks(self) -> str:
        """What verifies them."""
        keys = [
            {**ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True), "kid": "curve", "use": "sig"},
            {**RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True), "kid": "rsa", "alg": "RS256"},
        ]
        return json.dumps({"keys": keys})

    def claims(self, role: str | None = "viewer", **changed: Any) -> dict[str, Any]:
        """Those of a good token, with some changed; None: left out."""
        base = {"sub": "ann", "aud": AUDIENCE, "iss": ISSUER, "exp": int(time.time()) + 600, "luthier_role": role}
        return {name: value for name, value in {**base, **changed}.items() if value is not None}

    def token(self, role: str | None = "viewer", **changed: Any) -> str:
        """A good token, with some claims changed."""
        return jwt.encode(self.claims(role, **changed), self.key, algorithm="ES256", headers={"kid": "curve"})

    def bad(self) -> dict[str, str]:
        """Tokens that claim the highest role and must not be believed, by what is wrong with them."""
        past = int(time.time()) - 60
        stranger = ec.generate_private_key(ec.SECP256R1())
        pem = self.rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        head, body, signature = self.token("admin").split(".")
        other = json.dumps(self.claims("admin", sub="eve")).encode()
        return {
            "expired": self.token("admin", exp=past),
            "not yet": self.token("admin", nbf=int(time.time()) + 600),
            "wrong audience": self.token("admin", aud="another-service"),
            "no audience": self.token("admin", aud=None),
            "wrong issuer": self.token("admin", iss="https://evil.example.com"),
            "no end": self.token("admin", exp=None),
            "no subject": self.token("admin", sub=None),
            "alg none": unsigned(self.claims("admin")),
            "alg None": unsigned(self.claims("admin"), alg="None"),
            "the public key as a secret": confused(self.claims("admin"), pem, "rsa"),
            "another's key": jwt.encode(self.claims("admin"), stranger, algorithm="ES256", headers={"kid": "curve"}),
            "another algorithm": jwt.encode(self.claims("admin"), self.rsa, algorithm="RS512", headers={"kid": "rsa"}),
            "changed": f"{head}.{encoded(other)}.{signature}",
            "without signature": f"{head}.{body}.",
            "a role that is none": self.token("emperor"),
            "no JWT": "a.b.c",
            "nothing known": "luthier_" + "A" * 43,
        }


def unsigned(claims: dict[str, Any], alg: str = "none") -> str:
    head = {"alg": alg, "typ": "JWT", "kid": "curve"}
    return f"{encoded(json.dumps(head).encode())}.{encoded(json.dumps(claims).encode())}."


def confused(claims: dict[str, Any], secret: bytes, kid: str) -> str:
    """Signed by a secret that everybody knows: the public key."""
    head = encoded(json.dumps({"alg": "HS256", "typ": "JWT", "kid": kid}).encode())
    signed = f"{head}.{encoded(json.dumps(claims).encode())}"
    return f"{signed}.{encoded(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def bearer(token: str | None) -> list[tuple[str, str]]:
    """What goes into a call's metadata."""
    return [] if token is None else [("authorization", f"Bearer {token}")]


def holding(channel: grpc.Channel, token: str, **more: str) -> grpc.Channel:
    """The channel with a token in each of its calls."""
    return grpc.intercept_channel(channel, _Sending([*bearer(token), *more.items()]))


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: list[tuple[str, str]]
    credentials: Any = None
    wait_for_ready: bool | None = None
    compression: Any = None


class _Sending(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, metadata: list[tuple[str, str]]) -> None:
        self._metadata = metadata

    def _send(self, continuation: Callable[..., Any], details: grpc.ClientCallDetails, request: Any) -> Any:
        metadata = [*(details.metadata or []), *self._metadata]
        return continuation(_Details(details.method, details.timeout, metadata), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _send
