"""Asking every caller who they are, holding them to the policy, and writing down what they change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import sqlalchemy as sa
import structlog
from google.longrunning import operations_pb2
from google.rpc import code_pb2

from luthier.access.audit import Audit
from luthier.access.gate import Gate
from luthier.access.policy import Policy, Rule, text
from luthier.access.principal import Credentials, Principal, Role, acting
from luthier.access.quotas import Rates
from luthier.errors import LuthierError
from luthier.services.binding import Behavior, behavior_of, with_behavior
from luthier.services.callers import origin
from luthier.services.interceptor import CHANGES
from luthier.telemetry.calls import Call, current

log = structlog.get_logger()


class AccessInterceptor(grpc.ServerInterceptor):
    """Lets a call through to whom the policy allows it. It stands behind the one that turns errors into statuses."""

    def __init__(self, gate: Gate, policy: Policy, audit: Audit) -> None:
        self._guards = _Guards(gate, policy, Rates(), audit)
        self._methods: dict[str, tuple[grpc.RpcMethodHandler, grpc.RpcMethodHandler]] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The method that was called, guarded; wrapped when it was first called."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        name = handler_call_details.method
        known = self._methods.get(name)
        if known is None or known[0] is not handler:
            self._methods[name] = known = (handler, self._wrapped(name, handler))
        return known[1]

    def _wrapped(self, name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        rule = self._guards.policy.rules.get(name)
        if rule is not None and rule.role == Role.NONE:
            return handler
        method = _Method(name, self._guards, handler.request_streaming, CHANGES.fullmatch(name) is not None)
        wrap = _stream if handler.response_streaming else _unary
        # The attributes that name the thread pool stay.
        return with_behavior(handler, wrap(behavior_of(handler), method))


@dataclass(frozen=True)
class _Guards:
    gate: Gate
    policy: Policy
    rates: Rates
    audit: Audit


@dataclass(frozen=True)
class _Method:
    name: str
    guards: _Guards
    takes_stream: bool
    changes: bool

    def enter(self, request: Any, context: grpc.ServicerContext) -> _Entered:
        """Who calls, and by which rule; raises Unauthenticated, PermissionDenied."""
        call = current.get()
        assert call is not None
        peer, certificate = origin(context, self.guards.gate.asks_plugins)
        credentials = Credentials(call.metadata(), peer, certificate)
        try:
            principal = self.guards.gate.principal(credentials)
            call.principal = principal.name
            acting.set(principal)
            rule = self.guards.policy.rule(self.name, principal)
        except LuthierError as error:
            self.refused(call, credentials, self.resource(request), error)
            raise
        return _Entered(self, call, credentials, principal, rule)

    def resource(self, request: Any) -> str:
        """What a change is about, as far as its request says."""
        rule = self.guards.policy.rules.get(self.name)
        if not self.changes or self.takes_stream or rule is None:
            return ""
        return ", ".join(dict.fromkeys(text(each) for each in rule.named(request))) or _name(request)

    def refused(self, call: Call, credentials: Credentials, resource: str, error: LuthierError) -> None:
        """Writes down a change that was not let in."""
        if self.changes:
            code = code_pb2.Code.Name(error.code)
            try:
                self.guards.audit.refused(call.principal, self.name, resource, code, call.request_id, credentials.peer)
            except sa.exc.OperationalError as gone:
                # It is refused all the same, which the log says.
                log.warning("database unreachable", error=type(gone.orig).__name__)


class _Entered:
    """A call whose caller is known and has the role."""

    __slots__ = ("_call", "_credentials", "_guards", "_method", "_principal", "_resource", "_row", "_rule")

    def __init__(self, method: _Method, call: Call, credentials: Credentials, principal: Principal, rule: Rule) -> None:
        self._method = method
        self._guards = method.guards
        self._call = call
        self._credentials = credentials
        self._principal = principal
        self._rule = rule
        self._row: str | None = None
        self._resource = ""

    def begin(self, request: Any) -> Any:
        """Checks a request, or makes each of a stream be checked as it is taken up; notes that the work begins."""
        if self._method.takes_stream:
            request = self._each(request)
        else:
            self._check(request, counts=True)
        if self._method.changes:
            call, self._resource = self._call, self._method.resource(request)
            self._row = self._guards.audit.begin(
                self._principal.name, self._method.name, self._resource, call.request_id, self._credentials.peer
            )
        return request

    def shown(self, response: Any) -> Any:
        """What of an answer the caller is shown."""
        response = self._guards.policy.shown(self._rule, self._principal, response)
        self._guards.rates.note(self._principal, response)
        return response

    def check_still(self) -> None:
        """Raises Unauthenticated where the caller's token has ended meanwhile, PermissionDenied where its role has."""
        principal = self._guards.gate.principal(self._credentials)
        if principal is not self._principal:
            self._rule = self._guards.policy.rule(self._method.name, principal)
            self._principal = principal
            acting.set(principal)

    def end(self, code: str, response: Any = None) -> None:
        """Notes how it ended."""
        if self._row is None:
            return
        name = _name(response) or _name(getattr(response, "token", None))
        if name and (not self._resource or isinstance(response, operations_pb2.Operation)):
            self._resource = f"{self._resource}, {name}" if self._resource else name
        try:
            self._guards.audit.end(self._row, code, self._resource)
        except sa.exc.OperationalError as gone:
            # What was done is done; the entry says that it began, and the log how it ended.
            log.warning("database unreachable", error=type(gone.orig).__name__)

    def _each(self, requests: Iterator[Any]) -> Iterator[Any]:
        # What names resources in each of its requests is one call in each; an upload is one, whatever its chunks.
        counts = True
        for request in requests:
            self.check_still()
            self._check(request, counts=counts)
            counts = bool(self._rule.fields)
            yield request

    def _check(self, request: Any, *, counts: bool) -> None:
        try:
            self._guards.policy.check(self._rule, self._principal, request)
            self._guards.rates.admit(self._principal, request, counts=counts)
        except LuthierError as error:
            if self._row is None:
                self._method.refused(self._call, self._credentials, self._method.resource(request), error)
            raise


def _unary(behavior: Behavior, method: _Method) -> Behavior:
    @functools.wraps(behavior)
    def run(request: Any, context: grpc.ServicerContext) -> Any:
        entered = method.enter(request, context)
        request = entered.begin(request)
        try:
            response = behavior(request, context)
        except BaseException as error:
            entered.end(_code_of(error, context))
            raise
        entered.end("OK" if context.code() is None else context.code().name, response)
        return entered.shown(response)

    return run


def _stream(behavior: Behavior, method: _Method) -> Behavior:
    @functools.wraps(behavior)
    def run(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        entered = method.enter(request, context)
        request = entered.begin(request)
        first = True
        try:
            for response in behavior(request, context):
                # A watch may last for days.
                if not first:
                    entered.check_still()
                first = False
                yield entered.shown(response)
        except BaseException as error:
            entered.end(_code_of(error, context))
            raise
        entered.end("OK" if context.code() is None else context.code().name)

    return run


def _code_of(error: BaseException, context: grpc.ServicerContext) -> str:
    if isinstance(error, LuthierError):
        return str(code_pb2.Code.Name(error.code))
    if isinstance(error, sa.exc.OperationalError):
        return "UNAVAILABLE"
    if context.code() is not None:
        return str(context.code().name)
    return "INTERNAL" if context.is_active() else "CANCELLED"


def _name(message: Any) -> str:
    """The resource that a message is or names, in short or whole; empty where it has no name."""
    name = getattr(message, "name", "")
    return name if isinstance(name, str) else ""
