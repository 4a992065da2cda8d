"""What can go wrong, and how a caller learns of it.

    LuthierError                  code         reason
    ├── InvalidArgument           INVALID_ARGUMENT     INVALID_ARGUMENT
    │   └── InvalidData           INVALID_ARGUMENT     INVALID_DATA
    ├── MalformedRequest          INVALID_ARGUMENT     MALFORMED_REQUEST
    ├── NotFound                  NOT_FOUND            NOT_FOUND
    ├── AlreadyExists             ALREADY_EXISTS       ALREADY_EXISTS
    ├── FailedPrecondition        FAILED_PRECONDITION  FAILED_PRECONDITION
    │   └── ParityFailed          FAILED_PRECONDITION  PARITY_FAILED
    ├── Unauthenticated           UNAUTHENTICATED      UNAUTHENTICATED
    ├── PermissionDenied          PERMISSION_DENIED    PERMISSION_DENIED
    ├── Cancelled                 CANCELLED            CANCELLED
    ├── DeadlineExceeded          DEADLINE_EXCEEDED    DEADLINE_EXCEEDED
    ├── ResourceExhausted         RESOURCE_EXHAUSTED   RESOURCE_EXHAUSTED
    │   ├── OutOfMemory           RESOURCE_EXHAUSTED   OUT_OF_MEMORY
    │   └── QuotaExceeded         RESOURCE_EXHAUSTED   QUOTA_EXCEEDED
    ├── DataLoss                  DATA_LOSS            DATA_LOSS
    └── Unavailable               UNAVAILABLE          UNAVAILABLE
        ├── BaseUnavailable       UNAVAILABLE          BASE_UNAVAILABLE
        └── StoreUnavailable      UNAVAILABLE          STORE_UNAVAILABLE

Any other exception that reaches a caller becomes INTERNAL with an opaque id that the log explains.
"""

from collections.abc import Mapping, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from luthier.redaction import redact
from luthier.v1.dataset_pb2 import DataProblem

DOMAIN = "luthier"


class LuthierError(Exception):
    """An error that is explained to the caller.

    `metadata` goes into the ErrorInfo detail, for programs to read.
    """

    code: int = code_pb2.INTERNAL
    reason: str = "INTERNAL"

    def __init__(self, message: str, **metadata: str) -> None:
        self.message = redact(message)
        super().__init__(self.message)
        self.metadata = {name: redact(value) for name, value in metadata.items()}

    def details(self) -> list[Message]:
        """The google.rpc details that go with the status."""
        return [error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)]

    def status(self) -> status_pb2.Status:
        """The error as google.rpc.Status."""
        status = status_pb2.Status(code=self.code, message=self.message)
        for detail in self.details():
            status.details.add().Pack(detail)
        return status


class InvalidArgument(LuthierError):
    """A request that can never succeed as it is. `violations` maps the path of each bad field to what is wrong."""

    code = code_pb2.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    def __init__(self, violations: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{field}: {why}" for field, why in violations.items()))
        self.violations = {redact(field): redact(why) for field, why in violations.items()}

    def details(self) -> list[Message]:
        """ErrorInfo and BadRequest."""
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=why)
            for field, why in self.violations.items()
        ]
        return [*super().details(), error_details_pb2.BadRequest(field_violations=violations)]


class InvalidData(InvalidArgument):
    """Files that cannot become a data set: all problems at once, by file, row and field."""

    reason = "INVALID_DATA"
    shown = 20

    def __init__(self, problems: Sequence[DataProblem]) -> None:
        violations: dict[str, str] = {}
        for problem in problems:
            place = where(problem)
            violations[place] = f"{violations[place]}; {problem.message}" if place in violations else problem.message
        super().__init__(violations)
        self.problems = list(problems)
        count = len(self.problems)
        head = "; ".join(f"{where(problem)}: {problem.message}" for problem in self.problems[: self.shown])
        more = f"; and {count - self.shown} more" if count > self.shown else ""
        self.message = redact(f"{count} problem{'s' if count != 1 else ''} in the data: {head}{more}")
        self.args = (self.message,)

    def details(self) -> list[Message]:
        """ErrorInfo, BadRequest and one DataProblem for each problem."""
        return [*super().details(), *self.problems]


class MalformedRequest(LuthierError):
    """Bytes that are no message of the method that was called."""

    code = code_pb2.INVALID_ARGUMENT
    reason = "MALFORMED_REQUEST"


class NotFound(LuthierError):
    """A resource that is not there."""

    code = code_pb2.NOT_FOUND
    reason = "NOT_FOUND"

    def __init__(self, resource: str, hint: str = "") -> None:
        super().__init__(f"{resource} was not found{'; ' + hint if hint else ''}", resource=resource)
        self.resource = resource

    def details(self) -> list[Message]:
        """ErrorInfo and ResourceInfo."""
        kind = self.resource.split("/")[0]
        return [*super().details(), error_details_pb2.ResourceInfo(resource_type=kind, resource_name=self.resource)]


class AlreadyExists(LuthierError):
    """A resource that is there already and differs."""

    code = code_pb2.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPrecondition(LuthierError):
    """The system is not in the state that the request needs."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class ParityFailed(FailedPrecondition):
    """The served bundle falls short of the model it was exported from, so it was not published."""

    reason = "PARITY_FAILED"


class Unauthenticated(LuthierError):
    """Nobody knows who calls. Why a token was refused, the server's log says alone."""

    code = code_pb2.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(LuthierError):
    """Whoever calls may not do this."""

    code = code_pb2.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Cancelled(LuthierError):
    """Someone asked for an end."""

    code = code_pb2.CANCELLED
    reason = "CANCELLED"


class DeadlineExceeded(LuthierError):
    """The caller's time is over."""

    code = code_pb2.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class ResourceExhausted(LuthierError):
    """There is no room. `retry_s` says when to try again."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_s: float = 0.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_s = retry_s

    def details(self) -> list[Message]:
        """ErrorInfo, and RetryInfo where a retry makes sense."""
        if not self.retry_s:
            return super().details()
        delay = Duration()
        delay.FromMilliseconds(int(self.retry_s * 1000))
        return [*super().details(), error_details_pb2.RetryInfo(retry_delay=delay)]


class OutOfMemory(ResourceExhausted):
    """A training wanted more memory than there is."""

    reason = "OUT_OF_MEMORY"


class QuotaExceeded(ResourceExhausted):
    """Whoever calls has had what a quota gives."""

    reason = "QUOTA_EXCEEDED"


class DataLoss(LuthierError):
    """Stored bytes are not the ones that were written."""

    code = code_pb2.DATA_LOSS
    reason = "DATA_LOSS"


class Unavailable(LuthierError):
    """Something that this depends on does not answer; a retry may succeed."""

    code = code_pb2.UNAVAILABLE
    reason = "UNAVAILABLE"


class BaseUnavailable(Unavailable):
    """None of a base's sources gave its files."""

    reason = "BASE_UNAVAILABLE"


class StoreUnavailable(Unavailable):
    """The object store of the artefacts cannot be reached, or refuses."""

    reason = "STORE_UNAVAILABLE"


def where(problem: DataProblem) -> str:
    """`file:row:field` of a problem, as far as they are known."""
    parts = [problem.file, f"row {problem.row}" if problem.row else "", problem.field]
    return ":".join(part for part in parts if part) or "data set"
