"""A trace goes from a caller's own span over the call to the session, and arrives at a collector."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider

import inprocess
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier_client import AsyncClient, Client, errors
from support import Server, create_dataset, fine_tune, interactions, serving

POPULARITY = recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)
PREDICT = "luthier.v1.PredictionService/Predict"
STAGES = ["receive", "queue", "encode", "run", "decode"]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps all spans that come."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self._came = threading.Condition()

    def Export(  # noqa: N802
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._came:
            for resource in request.resource_spans:
                names = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                self.services.update(names)
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_trace(self, trace_id: int, count: int) -> list[Span]:
        """The spans of one trace in the order of their beginning, once there are so many."""

        def found() -> list[Span]:
            return [span for span in self.spans if int.from_bytes(span.trace_id) == trace_id]

        with self._came:
            assert self._came.wait_for(lambda: len(found()) >= count, timeout=30), f"{len(found())} spans, not {count}"
            return sorted(found(), key=lambda span: span.start_time_unix_nano)


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    """One in this process, and its URL."""
    servicer = Collector()
    with inprocess.serving(
        lambda server: trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    ) as address:
        yield servicer, f"http://{address}"


@pytest.fixture(scope="module")
def traced(collector: tuple[Collector, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that continues traces and begins none, with a model called shop."""
    home = tmp_path_factory.mktemp("traced")
    flags = ["--traces-endpoint", collector[1], "--traces-ratio", "0"]
    with serving(home, *flags, OTEL_BSP_SCHEDULE_DELAY="100") as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(home / "shop.csv")})
        fine_tune(server, "shop", "recommendation", "shop", POPULARITY)
        yield server


def attributes(span: Span) -> dict[str, str | int]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def check(spans: Sequence[Span], parent: int, rows: int) -> None:
    """Fails unless the spans are those of a prediction: the call under the caller's span, its stages under it."""
    call, *stages = spans
    assert call.name == PREDICT
    assert call.kind == Span.SPAN_KIND_SERVER
    assert int.from_bytes(call.parent_span_id) == parent
    assert attributes(call)["rpc.response.status_code"] == "OK"
    assert [span.name for span in stages] == STAGES
    assert {span.parent_span_id for span in stages} == {call.span_id}
    assert [attributes(span) for span in stages] == [
        {"luthier.model": "shop", "luthier.version": "1", "luthier.rows": rows}
    ] * len(STAGES)
    assert stages[0].start_time_unix_nano == call.start_time_unix_nano
    for one, other in pairwise(stages):
        assert one.start_time_unix_nano <= one.end_time_unix_nano == other.start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= call.end_time_unix_nano


def test_a_trace_goes_from_the_client_to_the_session(collector: tuple[Collector, str], traced: Server) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with Client(traced.address) as client, tracer.start_as_current_span("caller") as span:
        client.predict("shop", [recommendation.Instance(user="u1"), recommendation.Instance(user="u2")])
    context = span.get_span_context()
    check(collector[0].of_trace(context.trace_id, 6), context.span_id, rows=2)
    assert collector[0].services == {"luthier"}


def test_it_does_from_asyncio_too(collector: tuple[Collector, str], traced: Server) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")

    async def ask() -> tuple[int, int]:
        async with AsyncClient(traced.address) as client:
            with tracer.start_as_current_span("caller") as span:
                await client.predict("shop", [recommendation.Instance(user="u1")])
                return span.get_span_context().trace_id, span.get_span_context().span_id

    trace_id, span_id = asyncio.run(ask())
    check(collector[0].of_trace(trace_id, 6), span_id, rows=1)


def test_a_call_that_fails_says_so(collector: tuple[Collector, str], traced: Server) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    mistaken = [recommendation.Instance(user="u1", k=-1)]
    with (
        Client(traced.address) as client,
        tracer.start_as_current_span("caller") as span,
        pytest.raises(errors.InvalidArgument),
    ):
        client.predict("shop", mistaken)
    call, *stages = collector[0].of_trace(span.get_span_context().trace_id, 3)
    assert attributes(call)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    # It is the caller's mistake, not the server's.
    assert call.status.code == Status.STATUS_CODE_UNSET
    assert [stage.name for stage in stages] == ["receive", "queue"]


def test_streams_of_either_side_are_traced(collector: tuple[Collector, str], traced: Server) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with Client(traced.address) as client, tracer.start_as_current_span("caller") as span:
        batches = [[recommendation.Instance(user="u1")]] * 3
        assert len(list(client.stream_predict("shop", batches))) == 3
    spans = collector[0].of_trace(span.get_span_context().trace_id, 16)
    assert [span.name for span in spans].count("run") == 3


def test_calls_without_a_trace_are_traced_by_the_ratio(collector: tuple[Collector, str], traced: Server) -> None:
    before = len(collector[0].spans)
    with Client(traced.address) as client:
        client.predict("shop", [recommendation.Instance(user="u1")])
    time.sleep(0.5)
    assert len(collector[0].spans) == before
    home = traced.home.with_name("all")
    home.mkdir()
    with serving(home, "--traces-endpoint", collector[1]) as server, Client(server.address) as client:
        list(client.list_tasks())
    # The end of a server sends what is left.
    assert "luthier.v1.TaskService/ListTasks" in {span.name for span in collector[0].spans[before:]}


def test_a_collector_that_is_away_holds_nothing_up(tmp_path: Path) -> None:
    with serving(tmp_path, "--traces-endpoint", "http://127.0.0.1:9") as server:
        with Client(server.address) as client:
            assert list(client.list_tasks())
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 10
    # What OpenTelemetry says of it is a line like any other.
    assert all(line.startswith("{") for line in server.log)
