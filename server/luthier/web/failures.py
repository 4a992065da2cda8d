"""Errors as HTTP says them: a status, and JSON of the Connect protocol or of the Open Inference Protocol."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from luthier.errors import DOMAIN, LuthierError

_CODES: Mapping[int, tuple[str, int]] = {
    code_pb2.CANCELLED: ("canceled", 499),
    code_pb2.UNKNOWN: ("unknown", 500),
    code_pb2.INVALID_ARGUMENT: ("invalid_argument", 400),
    code_pb2.DEADLINE_EXCEEDED: ("deadline_exceeded", 504),
    code_pb2.NOT_FOUND: ("not_found", 404),
    code_pb2.ALREADY_EXISTS: ("already_exists", 409),
    code_pb2.PERMISSION_DENIED: ("permission_denied", 403),
    code_pb2.RESOURCE_EXHAUSTED: ("resource_exhausted", 429),
    code_pb2.FAILED_PRECONDITION: ("failed_precondition", 400),
    code_pb2.ABORTED: ("aborted", 409),
    code_pb2.OUT_OF_RANGE: ("out_of_range", 400),
    code_pb2.UNIMPLEMENTED: ("unimplemented", 501),
    code_pb2.INTERNAL: ("internal", 500),
    code_pb2.UNAVAILABLE: ("unavailable", 503),
    code_pb2.DATA_LOSS: ("data_loss", 500),
    code_pb2.UNAUTHENTICATED: ("unauthenticated", 401),
}
"""Name and HTTP status of each code: https://connectrpc.com/docs/protocol, "Error Codes"."""


class Failure(Exception):
    """What a request ends with instead of an answer."""

    def __init__(
        self,
        status: status_pb2.Status,
        http: int = 0,
        headers: Mapping[str, str] | None = None,
        trailers: Mapping[str, str] | None = None,
    ) -> None:
        """`http` is the HTTP status where the code's own would say too little."""
        super().__init__(status.message)
        self.status = status
        self.name, own = _CODES.get(status.code, _CODES[code_pb2.UNKNOWN])
        self.http = http or own
        self.headers = {**_advice(status), **(headers or {})}
        self.trailers = dict(trailers or {})

    @classmethod
    def of(cls, error: LuthierError, http: int = 0, **headers: str) -> Failure:
        """One that this process found."""
        return cls(error.status(), http, {name.replace("_", "-"): value for name, value in headers.items()})

    @classmethod
    def plain(cls, code: code_pb2.Code, message: str, http: int = 0, **headers: str) -> Failure:
        """One that only HTTP knows."""
        status = status_pb2.Status(code=code, message=message)
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=code_pb2.Code.Name(code), domain=DOMAIN))
        return cls(status, http, {name.replace("_", "-"): value for name, value in headers.items()})

    @classmethod
    def of_call(cls, error: grpc.aio.AioRpcError, trailers: Mapping[str, str]) -> Failure:
        """What the server ended a call with."""
        code = error.code().value[0]
        try:
            status = rpc_status.from_call(error)
        except (ValueError, DecodeError):
            status = None
        return cls(status or status_pb2.Status(code=code, message=error.details() or ""), trailers=trailers)

    def connect(self, pool: DescriptorPool) -> dict[str, Any]:
        """The error as the Connect protocol writes it."""
        said: dict[str, Any] = {"code": self.name}
        if self.status.message:
            said["message"] = self.status.message
        if self.status.details:
            said["details"] = [_detail(pool, one.type_url.rpartition("/")[2], one.value) for one in self.status.details]
        return said


def _detail(pool: DescriptorPool, name: str, value: bytes) -> dict[str, Any]:
    said: dict[str, Any] = {"type": name, "value": b64encode(value).decode().rstrip("=")}
    try:
        message = GetMessageClass(pool.FindMessageTypeByName(name)).FromString(value)
        said["debug"] = MessageToDict(message, descriptor_pool=pool)
    except (KeyError, DecodeError):
        # `debug` is for people; programs read the value, for which they have the type.
        pass
    return said


def _advice(status: status_pb2.Status) -> dict[str, str]:
    """Headers that tools without gRPC understand."""
    if status.code == code_pb2.UNAUTHENTICATED:
        return {"www-authenticate": "Bearer"}
    retry = error_details_pb2.RetryInfo()
    if any(detail.Unpack(retry) for detail in status.details):
        return {"retry-after": str(math.ceil(retry.retry_delay.ToTimedelta().total_seconds()))}
    return {}
