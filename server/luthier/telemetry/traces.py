"""Traces of calls and their stages, sent to an OpenTelemetry collector.

OpenTelemetry comes with the extra `otel`, and is imported only by a server that is to trace.
"""

from __future__ import annotations

import os
import threading
import time
from time import perf_counter
from typing import TYPE_CHECKING

from luthier.errors import FailedPrecondition
from luthier.telemetry.calls import Call, Span

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

PARENT = "traceparent"
"""Key of the metadata in which W3C Trace Context comes."""

FLUSH_S = 2.0
"""How long the end of a process waits for a collector to take the last spans."""


class Tracing:
    """Makes a span of each call that its caller traces, and of a part of those that come without a trace."""

    def __init__(self, endpoint: str, ratio: float) -> None:
        """`endpoint` is the URL of a collector that speaks OTLP over gRPC, `ratio` the part of calls without a trace.

        Raises FailedPrecondition where OpenTelemetry is not installed.
        """
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise FailedPrecondition("traces need OpenTelemetry: pip install 'luthier[otel]'") from error
        name = os.environ.get("OTEL_SERVICE_NAME", "luthier")
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(ratio),
            resource=Resource.create({"service.name": name}),
            shutdown_on_exit=False,
        )
        self._exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("luthier")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = trace.SpanKind.SERVER

    def begin(self, method: str, call: Call) -> Span | None:
        """The span of a call that is to be traced, from its arrival on; it continues the caller's."""
        from opentelemetry import trace

        carrier = call.metadata()
        parent = self._propagator.extract(carrier) if PARENT in carrier else None
        name = method.lstrip("/")
        # The clock is read once, so that what follows on one another does so in the trace.
        epoch = time.time_ns() - int(perf_counter() * 1e9)
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        span = self._tracer.start_span(name, parent, self._kind, attributes, start_time=_ns(call.arrived, epoch))
        if not span.is_recording():
            return None
        return _CallSpan(self._tracer, span, trace.set_span_in_context(span), epoch)

    def stop(self) -> None:
        """Sends what is left, and gives up where the collector does not take it in time."""
        # The provider's own end waits as long as the exporter tries.
        given_up = threading.Timer(FLUSH_S, self._exporter.shutdown)
        given_up.start()
        self._provider.shutdown()
        given_up.cancel()


class _CallSpan:
    def __init__(self, tracer: trace.Tracer, span: trace.Span, context: Context, epoch: int) -> None:
        self._tracer = tracer
        self._span = span
        self._context = context
        self._epoch = epoch

    def stage(self, name: str, began: float, ended: float, model: str, version: str, rows: int) -> None:
        attributes: dict[str, AttributeValue] = {
            "luthier.model": model,
            "luthier.version": version,
            "luthier.rows": rows,
        }
        span = self._tracer.start_span(name, self._context, attributes=attributes, start_time=_ns(began, self._epoch))
        span.end(_ns(ended, self._epoch))

    def end(self, code: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("rpc.response.status_code", code)
        if code in _FAULTS:
            self._span.set_status(StatusCode.ERROR)
        self._span.end(_ns(perf_counter(), self._epoch))


_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes that OpenTelemetry's conventions count as errors of the server; others are the caller's."""


def _ns(at: float, epoch: int) -> int:
    """A moment of `time.perf_counter` in nanoseconds since the epoch, which tells where that clock's zero was."""
    return epoch + int(at * 1e9)
