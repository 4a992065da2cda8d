"""Channels to a Luthier server, set up alike for threads and for asyncio."""

from __future__ import annotations

import json

import grpc
import grpc.aio

from luthier_client import traces

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


def connect(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A channel to `host:port`, with TLS where credentials are given."""
    if credentials is None:
        channel = grpc.insecure_channel(address, OPTIONS)
    else:
        channel = grpc.secure_channel(address, credentials, OPTIONS)
    return grpc.intercept_channel(channel, traces.Joining()) if traces.AVAILABLE else channel


def connect_async(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """As `connect`, for asyncio."""
    joining = traces.joining_async() if traces.AVAILABLE else []
    if credentials is None:
        return grpc.aio.insecure_channel(address, OPTIONS, interceptors=joining)
    return grpc.aio.secure_channel(address, credentials, OPTIONS, interceptors=joining)
