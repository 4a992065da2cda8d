"""Channels to a Luthier server, set up alike for threads and for asyncio: options, TLS, and what every call says."""

from __future__ import annotations

import ipaddress
import json
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from luthier_client import traces
from luthier_client.interceptors import Adding, Adds, adding_async
from luthier_client.requests import PathLike

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest answer taken. Bulk data goes in streams of small chunks; only large batches of predictions come near."""

_RETRY_UNAVAILABLE = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A dead peer is noticed within 40 s, in the midst of a silent watch too. The server permits pings this often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.service_config", json.dumps(_RETRY_UNAVAILABLE)),
)

_HTTPS = "https://"


@dataclass(frozen=True)
class Target:
    """A server, and how to speak to it."""

    address: str
    """`host:port`"""
    credentials: grpc.ChannelCredentials | None
    """None: without TLS."""
    adds: tuple[Adds, ...]
    """What goes along with every call."""


def target(
    address: str,
    *,
    ca: PathLike | None = None,
    cert: PathLike | None = None,
    key: PathLike | None = None,
    token: str = "",
    credentials: grpc.ChannelCredentials | None = None,
) -> Target:
    """The server at an address, `host:port` or `https://host:port`.

    TLS is spoken where the address has `https://`, where `ca` or `cert` is given, or with credentials made elsewhere.
    Raises ValueError for files that do not hold what they should, and for a token that others could read on its way.
    """
    is_https = address.startswith(_HTTPS)
    place = address.removeprefix(_HTTPS).rstrip("/") if is_https else address
    if is_https and not place.rpartition("]")[2].rpartition(":")[1]:
        place += ":443"
    if credentials is None and (is_https or ca is not None or cert is not None or key is not None):
        credentials = _credentials(ca, cert, key)
    adds: list[Adds] = [traces.joining] if traces.AVAILABLE else []
    if token:
        if credentials is None and not _is_of_this_machine(place):
            raise ValueError(
                f"a token would go to {place} for everybody to read; "
                f"it is sent over TLS alone: give the authority's certificate, or {_HTTPS}{place}"
            )
        said = (("authorization", f"Bearer {token}"),)
        adds.append(lambda _: said)
    return Target(place, credentials, tuple(adds))


def connect(target: Target) -> grpc.Channel:
    """A channel to a server."""
    if target.credentials is None:
        channel = grpc.insecure_channel(target.address, OPTIONS)
    else:
        channel = grpc.secure_channel(target.address, target.credentials, OPTIONS)
    return grpc.intercept_channel(channel, *map(Adding, target.adds))


def connect_async(target: Target) -> grpc.aio.Channel:
    """As `connect`, for asyncio."""
    interceptors = [interceptor for adds in target.adds for interceptor in adding_async(adds)]
    if target.credentials is None:
        return grpc.aio.insecure_channel(target.address, OPTIONS, interceptors=interceptors)
    return grpc.aio.secure_channel(target.address, target.credentials, OPTIONS, interceptors=interceptors)


def _credentials(ca: PathLike | None, cert: PathLike | None, key: PathLike | None) -> grpc.ChannelCredentials:
    """Those of PEM files, read by Python's own library first: gRPC does not say what is wrong in them."""
    if (cert is None) != (key is None):
        raise ValueError("a client's certificate and its key go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    roots = None if ca is None else Path(ca).read_bytes()
    if roots is not None:
        try:
            context.load_verify_locations(cadata=roots.decode("ascii", "replace"))
        except ssl.SSLError:
            raise ValueError(f"{ca} holds no certificate in PEM that can be read") from None
    if cert is None or key is None:
        return grpc.ssl_channel_credentials(roots)
    chain, secret = Path(cert).read_bytes(), Path(key).read_bytes()
    try:
        context.load_cert_chain(cert, key, _no_passphrase)
    except ssl.SSLError:
        raise ValueError(f"{cert} and {key} are no certificate and its key, in PEM and without a passphrase") from None
    return grpc.ssl_channel_credentials(roots, secret, chain)


def _no_passphrase() -> str:
    return ""


def _is_of_this_machine(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
