"""What a call can end in, as exceptions.

    LuthierClientError
    ├── InvalidArgument       the request can never succeed as it is: `violations`, `problems`
    ├── Unauthenticated
    ├── PermissionDenied
    ├── NotFound
    ├── AlreadyExists
    ├── FailedPrecondition
    ├── ResourceExhausted     no room now: `retry_s`
    ├── Cancelled
    ├── DeadlineExceeded      also a TimeoutError
    ├── Unavailable           a retry may succeed
    │   └── Unreachable       nobody answers at the address
    │       └── Untrusted     somebody does, whose certificate proves nothing to this client
    ├── DataLoss
    ├── Unimplemented
    └── OperationFailed       an operation ended in the error that is its `__cause__`
        └── OperationCancelled

Any other status, such as INTERNAL, becomes a plain LuthierClientError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from luthier.v1.dataset_pb2 import DataProblem

M = TypeVar("M", bound=Message)


class LuthierClientError(Exception):
    """A call that did not succeed.

    `code` is the gRPC status; `reason`, `domain` and `metadata` come from google.rpc.ErrorInfo, `violations` (what is
    wrong by path of the field) from google.rpc.BadRequest, `problems` are those of a data set's files, and `retry_s`
    says after how many seconds a retry makes sense, 0 where the server does not say. `request_id` is what the lines of
    the call in the server's log carry.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        domain: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Mapping[str, str] | None = None,
        problems: Sequence[DataProblem] = (),
        retry_s: float = 0.0,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.domain = domain
        self.metadata = dict(metadata or {})
        self.violations = dict(violations or {})
        self.problems = list(problems)
        self.retry_s = retry_s
        self.request_id = request_id


class InvalidArgument(LuthierClientError):
    """A request that can never succeed as it is."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class Unauthenticated(LuthierClientError):
    """The server does not know who is calling."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(LuthierClientError):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class NotFound(LuthierClientError):
    """A resource that is not there."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(LuthierClientError):
    """A resource that is there already and differs."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(LuthierClientError):
    """The server is not in the state that the request needs."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(LuthierClientError):
    """There is no room at present."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Cancelled(LuthierClientError):
    """Someone asked for an end."""

    code = grpc.StatusCode.CANCELLED


class DeadlineExceeded(LuthierClientError, TimeoutError):
    """The time given is over."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(LuthierClientError):
    """The server, or something that it depends on, does not answer; a retry may succeed."""

    code = grpc.StatusCode.UNAVAILABLE


class Unreachable(Unavailable):
    """No Luthier server answers at the address."""


class Untrusted(Unreachable):
    """Somebody answers at the address, and does not prove to be the server that is meant."""


class DataLoss(LuthierClientError):
    """Bytes are not the ones that were sent or stored."""

    code = grpc.StatusCode.DATA_LOSS


class Unimplemented(LuthierClientError):
    """The server does not have this call."""

    code = grpc.StatusCode.UNIMPLEMENTED


class OperationFailed(LuthierClientError):
    """An operation that ended in an error: its fields are those of the error, which is also the `__cause__`."""

    def __init__(self, operation: str, error: LuthierClientError) -> None:
        super().__init__(
            error.message,
            reason=error.reason,
            domain=error.domain,
            metadata=error.metadata,
            violations=error.violations,
            problems=error.problems,
            retry_s=error.retry_s,
            request_id=error.request_id,
        )
        self.operation = operation
        self.code = error.code
        self.__cause__ = error


class OperationCancelled(OperationFailed):
    """An operation that ended because someone cancelled it."""


_BY_CODE = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        Cancelled,
        DeadlineExceeded,
        Unavailable,
        DataLoss,
        Unimplemented,
    )
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_status(status: status_pb2.Status) -> LuthierClientError:
    """The exception for a google.rpc.Status with its details."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = next(_details(status, error_details_pb2.ErrorInfo), error_details_pb2.ErrorInfo())
    request = next(_details(status, error_details_pb2.RequestInfo), error_details_pb2.RequestInfo())
    error = _BY_CODE.get(code, LuthierClientError)(
        status.message,
        reason=info.reason,
        domain=info.domain,
        metadata=info.metadata,
        violations={
            violation.field: violation.description
            for refused in _details(status, error_details_pb2.BadRequest)
            for violation in refused.field_violations
        },
        problems=list(_details(status, DataProblem)),
        retry_s=sum(
            retry.retry_delay.ToTimedelta().total_seconds() for retry in _details(status, error_details_pb2.RetryInfo)
        ),
        request_id=request.request_id,
    )
    error.code = code
    return error


def from_rpc(error: Any) -> LuthierClientError:
    """The exception for a grpc.RpcError of the synchronous or the asyncio library."""
    status = rpc_status.from_call(error)
    if status is not None:
        return from_status(status)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        # Every error of a Luthier server has details; this one was made by the transport.
        return _unreachable(error.details() or "the server cannot be reached")
    return from_status(status_pb2.Status(code=error.code().value[0], message=error.details() or ""))


_UNTRUSTED = (
    ("Hostname Verification Check failed", "the server's certificate is not for this address"),
    ("certificate has expired", "the server's certificate has expired"),
    ("certificate is not yet valid", "the server's certificate is not valid yet"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the server's certificate was signed by none of the authorities that this client trusts; is it the right CA?",
    ),
)
_UNFIT = (
    ("WRONG_VERSION_NUMBER", "the server speaks no TLS"),
    (
        "failed to connect to all addresses; last error: UNAVAILABLE",
        "the server ended the connection before it answered; it may want TLS, or a certificate of the client",
    ),
)


def _unreachable(details: str) -> Unreachable:
    """What gRPC's words mean, as far as they are about TLS."""
    for found, said in _UNTRUSTED:
        if found in details:
            return Untrusted(said)
    return Unreachable(next((said for found, said in _UNFIT if found in details), details))


@contextmanager
def translated() -> Iterator[None]:
    """Turns a grpc.RpcError of its body into a LuthierClientError."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc(error) from error


def _details(status: status_pb2.Status, kind: type[M]) -> Iterator[M]:
    """The details of one type, in order."""
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            detail = kind()
            packed.Unpack(detail)
            yield detail
