"""Static tokens, and who changed what: for administrators."""

from __future__ import annotations

from typing import Any

import grpc
import sqlalchemy as sa

from luthier import names, paging
from luthier.access.audit import Asked, Audit
from luthier.access.principal import PATTERN, Role
from luthier.access.tokens import Tokens
from luthier.database import now
from luthier.errors import FailedPrecondition, InvalidArgument
from luthier.operations import timestamp
from luthier.v1 import access_pb2, access_pb2_grpc

MOST_PATTERNS = 64


class TokenService(access_pb2_grpc.TokenServiceServicer):
    """Makes, lists and ends tokens."""

    def __init__(self, tokens: Tokens, is_asking: bool) -> None:
        """`is_asking` says whether this server asks its callers for tokens."""
        self._tokens = tokens
        self._is_asking = is_asking

    def CreateToken(
        self, request: access_pb2.CreateTokenRequest, context: grpc.ServicerContext
    ) -> access_pb2.CreateTokenResponse:
        """A new one; its secret is shown this once."""
        _check(self._is_asking)
        if violations := _violations(request):
            raise InvalidArgument(violations)
        expire_time = request.expire_time.ToMicroseconds() / 1e6 if request.HasField("expire_time") else None
        row, secret = self._tokens.create(
            request.principal, Role(request.role), request.models, request.datasets, expire_time
        )
        return access_pb2.CreateTokenResponse(token=_proto(row), secret=secret)

    def ListTokens(
        self, request: access_pb2.ListTokensRequest, context: grpc.ServicerContext
    ) -> access_pb2.ListTokensResponse:
        """A page, newest first."""
        _check(self._is_asking)
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, float, str)
        rows = self._tokens.page((key[0], key[1]) if key else None, size + 1)
        token = paging.token_of(rows[size - 1].create_time, rows[size - 1].id) if len(rows) > size else ""
        return access_pb2.ListTokensResponse(tokens=map(_proto, rows[:size]), next_page_token=token)

    def RevokeToken(self, request: access_pb2.RevokeTokenRequest, context: grpc.ServicerContext) -> access_pb2.Token:
        """Ends one."""
        _check(self._is_asking)
        return _proto(self._tokens.revoke(names.parse("tokens/{token}", request.name)[0]))


class AuditService(access_pb2_grpc.AuditServiceServicer):
    """Shows the audit log."""

    def __init__(self, audit: Audit, is_asking: bool) -> None:
        self._audit = audit
        self._is_asking = is_asking

    def ListAuditEntries(
        self, request: access_pb2.ListAuditEntriesRequest, context: grpc.ServicerContext
    ) -> access_pb2.ListAuditEntriesResponse:
        """A page, newest first."""
        _check(self._is_asking)
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, float, str)
        asked = Asked(
            request.principal,
            request.method,
            request.resource,
            request.start_time.ToMicroseconds() / 1e6 if request.HasField("start_time") else None,
            request.end_time.ToMicroseconds() / 1e6 if request.HasField("end_time") else None,
        )
        rows = self._audit.page(asked, (key[0], key[1]) if key else None, size + 1)
        return access_pb2.ListAuditEntriesResponse(
            audit_entries=[
                access_pb2.AuditEntry(
                    time=timestamp(row.time),
                    principal=row.principal,
                    method=row.method,
                    resource=row.resource,
                    code=row.code,
                    request_id=row.request_id,
                    peer=row.peer,
                )
                for row in rows[:size]
            ],
            next_page_token=paging.token_of(rows[size - 1].time, rows[size - 1].id) if len(rows) > size else "",
        )


def _check(is_asking: bool) -> None:
    """A token that anybody could make would outlast the day on which the server is closed."""
    if not is_asking:
        raise FailedPrecondition("this server asks nobody who they are; start it with --tokens")


def _violations(request: access_pb2.CreateTokenRequest) -> dict[str, str]:
    violations: dict[str, str] = {}
    try:
        names.check_id(request.principal, "principal")
    except InvalidArgument as error:
        violations |= error.violations
    if request.role not in access_pb2.Role.values() or not request.role:
        violations["role"] = "one of viewer, caller, tuner and admin"
    for field in ("models", "datasets"):
        patterns = getattr(request, field)
        if len(patterns) > MOST_PATTERNS:
            violations[field] = f"{len(patterns)} patterns; at most {MOST_PATTERNS}"
        for index, pattern in enumerate(patterns):
            if not PATTERN.fullmatch(pattern):
                violations[f"{field}[{index}]"] = f"{pattern!r} is no id and no pattern such as shop-*"
    if request.HasField("expire_time") and request.expire_time.ToMicroseconds() / 1e6 <= now():
        violations["expire_time"] = "it is over"
    return violations


def _proto(row: sa.Row[tuple[Any, ...]]) -> access_pb2.Token:
    token = access_pb2.Token(
        name=f"tokens/{row.id}",
        principal=row.principal,
        role=row.role,
        models=row.models.split(),
        datasets=row.datasets.split(),
        create_time=timestamp(row.create_time),
    )
    for field in ("expire_time", "revoke_time", "last_use_time"):
        if (seconds := getattr(row, field)) is not None:
            getattr(token, field).CopyFrom(timestamp(seconds))
    return token
