"""The gRPC server behind the front: its methods by their descriptors, and calls of them."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodOptions
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from luthier.errors import InvalidArgument, ResourceExhausted
from luthier.telemetry.calls import REQUEST_ID
from luthier.web.failures import Failure
from luthier.web.orders import CERTIFICATE, PEER

Metadata = list[tuple[str, str | bytes]]

_OPTIONS = [
    # What the server sends is no danger, and as long as it is.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
]

_OURS = re.compile(
    r"accept.*|access-control-.*|connect-.*|connection|content-.*|cookie|date|expect|forwarded|grpc-.*|host|http2-.*"
    r"|if-.*|inference-header-.*|keep-alive|luthier-front-.*|origin|pragma|cache-control|proxy-.*|range|referer|sec-.*|te|trailer|transfer-encoding"
    r"|upgrade.*|user-agent|via|dnt"
)
"""Headers that are about HTTP, or that only this process may send. All others are the call's metadata."""
_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
MOST_METADATA_BYTES = 8 * 1024
"""Of names and values; gRPC refuses more by ending the whole connection of all."""

_HIDDEN = frozenset({"grpc-status-details-bin"})


@dataclass(frozen=True)
class Method:
    """A method of a service."""

    path: str
    """`/package.Service/Method`."""
    descriptor: MethodDescriptor
    request: type[Message]
    response: type[Message]

    @property
    def streams(self) -> bool:
        """Whether it takes or gives more than one message."""
        return bool(self.descriptor.client_streaming or self.descriptor.server_streaming)

    @property
    def is_safe(self) -> bool:
        """Whether its proto says that it has no side effects, so that it may be asked for by GET."""
        return bool(self.descriptor.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS)


class Answer(NamedTuple):
    """What a call of one message was answered with, and what was sent along."""

    message: bytes
    headers: dict[str, str]
    trailers: dict[str, str]


class Upstream:
    """Calls of the server's methods. Made in the event loop."""

    def __init__(self, socket: str, services: FileDescriptorSet, max_request_bytes: int) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._max_request_bytes = max_request_bytes
        self.pool = _pool(services.file)
        self.methods = {method.path: method for method in _methods(self.pool, services.file)}
        # With no serialisers, messages go through as they are.
        self._calls: dict[str, Any] = {
            path: (self._channel.stream_stream if method.streams else self._channel.unary_unary)(path)
            for path, method in self.methods.items()
        }

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()

    def begin(self, path: str, message: bytes, metadata: Metadata, timeout_s: float | None = None) -> Any:
        """Begins a call of a unary method; `finish` waits for its answer."""
        return self._calls[path](self.checked(message), timeout=timeout_s, metadata=metadata)

    def stream(
        self, path: str, messages: AsyncIterator[bytes], metadata: Metadata, timeout_s: float | None = None
    ) -> Any:
        """Begins a call of a streaming method."""
        return self._calls[path](messages, timeout=timeout_s, metadata=metadata)

    def checked(self, message: bytes) -> bytes:
        """A message that is no longer than the server takes: JSON can be shorter than what it means."""
        if len(message) > self._max_request_bytes:
            raise too_large(self._max_request_bytes)
        return message


def too_large(most_bytes: int) -> Failure:
    """What a request is refused with that is longer than may be."""
    return Failure.of(
        ResourceExhausted(f"the request is larger than {most_bytes} bytes, which is all that is taken"), 413
    )


async def finish(call: Any) -> Answer:
    """The answer to a unary call; raises Failure."""
    try:
        message = await call
        return Answer(message, written(await call.initial_metadata()), written(await call.trailing_metadata()))
    except grpc.aio.AioRpcError as error:
        raise failure_of(error) from None


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """What the server ended a call with."""
    return Failure.of_call(error, written(error.trailing_metadata()))


def metadata_of(scope: Mapping[str, Any]) -> Metadata:
    """What a request's headers, and what is known of its sender, are as the call's metadata.

    Raises Failure for more than may be.
    """
    found: Metadata = []
    size = 0
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        if _OURS.fullmatch(key) or not _KEY.fullmatch(key):
            continue
        size += len(key) + len(text)
        if key.endswith("-bin"):
            try:
                found += [(key, _unpadded(part.strip())) for part in text.split(",")]
            except (binascii.Error, ValueError):
                raise Failure.of(InvalidArgument({key: "is no base64, as headers that end so are to be"})) from None
        elif _VALUE.fullmatch(text):
            found.append((key, text))
        else:
            raise Failure.of(InvalidArgument({key: "has characters that a header of a call may not have"}))
    if size > MOST_METADATA_BYTES:
        raise Failure.of(
            ResourceExhausted(f"the request's own headers have {size} bytes; {MOST_METADATA_BYTES} are taken"), 431
        )
    if client := scope.get("client"):
        host, port = client
        found.append((PEER, f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"))
    if certificate := scope["state"].get(CERTIFICATE):
        found.append((CERTIFICATE, certificate))
    return found


def _unpadded(text: str) -> bytes:
    return b64decode(text + "=" * (-len(text) % 4), validate=True)


def written(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Metadata as headers have it."""
    found: dict[str, str] = {}
    for key, value in metadata or ():
        if key in _HIDDEN:
            continue
        text = b64encode(value).decode().rstrip("=") if isinstance(value, bytes) else value
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def named(trailers: Mapping[str, str]) -> dict[str, str]:
    """Trailers as headers, by the Connect protocol's names; and the request's id by the name that others know."""
    found = {f"trailer-{key}": value for key, value in trailers.items()}
    if REQUEST_ID in trailers:
        found[REQUEST_ID] = trailers[REQUEST_ID]
    return found


def _pool(files: Iterable[FileDescriptorProto]) -> DescriptorPool:
    """A pool of its own, of files that come after those that they import."""
    pool = DescriptorPool()
    for file in files:
        pool.Add(file)
    return pool


def _methods(pool: DescriptorPool, files: Iterable[FileDescriptorProto]) -> Iterable[Method]:
    for file in files:
        for service in pool.FindFileByName(file.name).services_by_name.values():
            for method in service.methods:
                yield Method(
                    f"/{service.full_name}/{method.name}",
                    method,
                    GetMessageClass(method.input_type),
                    GetMessageClass(method.output_type),
                )
