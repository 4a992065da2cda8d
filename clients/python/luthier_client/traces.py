"""The trace that a caller is in goes along with its calls, where the caller's program uses OpenTelemetry."""

from __future__ import annotations

import importlib.util

from luthier_client.interceptors import Entries

AVAILABLE = importlib.util.find_spec("opentelemetry") is not None
"""Whether opentelemetry-api is installed; without it nothing is added to a channel, nor to the time of a call."""


def joining(metadata: list[tuple[str, str]]) -> Entries:
    """The `traceparent` of the span that is current, if one is and the call has none."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if not trace.get_current_span().get_span_context().is_valid or any(key == "traceparent" for key, _ in metadata):
        return ()
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.items()
