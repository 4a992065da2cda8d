"""The metrics that Prometheus scrapes, on a port of their own. Imported only by a server that is to show them."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from luthier.errors import Unavailable
from luthier.telemetry.meters import Distribution, Meters
from luthier.v1.monitoring_pb2 import Drift


@dataclass(frozen=True)
class Pool:
    """Threads that take calls up."""

    threads: int
    """Most of them that are at work."""
    waiting: Callable[[], int]
    """Calls that none has taken yet."""

    @classmethod
    def of(cls, executor: ThreadPoolExecutor) -> Pool:
        """Python's own, which says neither in public. Counting beside it would miss calls that are cancelled."""
        return cls(executor._max_workers, executor._work_queue.qsize)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a scrape finds what it shows."""

    meters: Meters
    operations: Callable[[], Mapping[str, int]]
    """The number of operations by state; raises Unavailable where the database does not answer."""
    models_loaded: Callable[[], int]
    pools: Mapping[str, Pool]
    dropped: Callable[[], Mapping[str, int]]
    """What was given up because too much waited, by what it was."""
    drift: Callable[[], Sequence[tuple[str, int, Drift]]]
    """Model, version and newest window of each version that an alias names; raises Unavailable likewise."""
    certificates: Certificates | None = None
    """None where the server shows none."""


class Certificates(Protocol):
    """What is told of a server's certificate."""

    @property
    def expires(self) -> float:
        """When the one that is shown does, in seconds since 1970."""

    @property
    def changes(self) -> Mapping[str, int]:
        """How often its files were found changed, by what came of it."""


class Exposition:
    """`/metrics` over HTTP, or HTTPS where there is a context for it, while it is open."""

    def __init__(self, listen: str, sources: Sources, context: ssl.SSLContext | None = None) -> None:
        """Raises OSError where the address cannot be had."""
        registry = CollectorRegistry(auto_describe=False)
        for collector in (ProcessCollector(registry=None), PlatformCollector(registry=None), _Luthier(sources)):
            registry.register(collector)
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        kind = _Server6 if ":" in host else _Server
        self._server = make_server(host, int(port), make_wsgi_app(registry), kind, _Handler)
        if context is not None:
            # Not at once: the one thread that accepts would wait for each caller's part of a handshake.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Scanners and scrapers without a certificate would fill a log."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 30
    """Seconds for a handshake and a request."""

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not logged."""


class _Luthier(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        """Nothing is read before the first scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from _calls(self._sources.meters)
        yield from _predictions(self._sources.meters)
        yield from _pools(self._sources.pools)
        dropped = CounterMetricFamily("luthier_dropped", "What was given up because too much waited", labels=["what"])
        for what, count in self._sources.dropped().items():
            dropped.add_metric([what], count)
        yield dropped
        loaded = self._sources.models_loaded()
        yield GaugeMetricFamily("luthier_models_loaded", "Model versions in memory", value=loaded)
        try:
            operations = self._sources.operations()
        except Unavailable:
            operations = {}
        yield GaugeMetricFamily("luthier_database_up", "Whether the database answered", value=bool(operations))
        yield _gauge("luthier_operations", "Operations", "state", operations)
        if self._sources.certificates is not None:
            yield from _certificates(self._sources.certificates)
        try:
            windows = self._sources.drift()
        except Unavailable:
            windows = []
        yield from _drift(windows)


def _calls(meters: Meters) -> Iterator[Metric]:
    calls = CounterMetricFamily("luthier_calls", "Calls that ended", labels=["method", "code"])
    seconds = HistogramMetricFamily("luthier_call_seconds", "Time of a call from its arrival", labels=["method"])
    in_flight = GaugeMetricFamily("luthier_calls_in_flight", "Calls that a thread has taken up", labels=["method"])
    for name, meter in meters.methods().items():
        by_code, distribution, running = meter.read()
        for code, count in by_code.items():
            calls.add_metric([name, code], count)
        _add(seconds, [name], distribution)
        in_flight.add_metric([name], running)
    yield from (calls, seconds, in_flight)


def _predictions(meters: Meters) -> Iterator[Metric]:
    labels = ["model", "version"]
    calls = CounterMetricFamily("luthier_predictions", "Calls for predictions that ended", labels=[*labels, "code"])
    instances = CounterMetricFamily("luthier_prediction_instances", "Instances predicted for", labels=labels)
    seconds = HistogramMetricFamily("luthier_prediction_seconds", "Time of an answered call", labels=labels)
    stages = HistogramMetricFamily("luthier_prediction_stage_seconds", "The same by stage", labels=[*labels, "stage"])
    rows = HistogramMetricFamily("luthier_batch_rows", "Rows that the graph computed at once", labels=labels)
    in_flight = GaugeMetricFamily("luthier_predictions_in_flight", "Calls that have not ended", labels=labels)
    waiting = GaugeMetricFamily("luthier_queue_waiting", "Those of them whose work has not begun", labels=labels)
    for meter in meters.versions():
        found, of = meter.statistics(), [meter.model, meter.version]
        for code, count in found.calls.items():
            calls.add_metric([*of, code], count)
        instances.add_metric(of, found.instances)
        _add(seconds, of, found.answered)
        for stage, distribution in found.stages.items():
            _add(stages, [*of, stage], distribution)
        _add(rows, of, found.rows)
        in_flight.add_metric(of, found.in_flight)
        waiting.add_metric(of, found.waiting)
    yield from (calls, instances, seconds, stages, rows, in_flight, waiting)


def _drift(windows: Sequence[tuple[str, int, Drift]]) -> Iterator[Metric]:
    labels = ["model", "version"]
    found = GaugeMetricFamily(
        "luthier_drift_statistic",
        "Distance of live values from the test part's, ks or psi",
        labels=[*labels, "feature"],
    )
    alarms = GaugeMetricFamily("luthier_drift_alarm", "Whether a feature moved", labels=[*labels, "feature"])
    predictions = GaugeMetricFamily("luthier_drift_predictions", "Predictions of the newest window", labels=labels)
    end = GaugeMetricFamily("luthier_drift_window_end_seconds", "When the newest window ended", labels=labels)
    error = GaugeMetricFamily("luthier_calibration_error", "Expected calibration error by feedback", labels=labels)
    score = GaugeMetricFamily(
        "luthier_live_score", "The task's metric by feedback", labels=[*labels, "metric", "bound"]
    )
    worse = GaugeMetricFamily("luthier_live_score_worse", "Whether it is below that of the publication", labels=labels)
    for model, number, window in windows:
        of = [model, str(number)]
        for feature in window.features:
            found.add_metric([*of, feature.name], feature.value)
            alarms.add_metric([*of, feature.name], feature.alarm)
        predictions.add_metric(of, window.num_predictions)
        end.add_metric(of, window.end_time.ToMicroseconds() / 1e6)
        if window.HasField("calibration"):
            error.add_metric(of, window.calibration.expected_error)
        if window.HasField("live"):
            live = window.live
            for bound, value in (("value", live.value), ("low", live.low), ("high", live.high)):
                score.add_metric([*of, live.metric, bound], value)
            worse.add_metric(of, live.worse)
    yield from (found, alarms, predictions, end, error, score, worse)


def _pools(pools: Mapping[str, Pool]) -> Iterator[Metric]:
    waiting = {name: pool.waiting() for name, pool in pools.items()}
    yield _gauge("luthier_pool_waiting", "Calls that wait for a thread", "pool", waiting)
    threads = {name: pool.threads for name, pool in pools.items()}
    yield _gauge("luthier_pool_threads", "Most threads of a pool that are at work", "pool", threads)


def _certificates(certificates: Certificates) -> Iterator[Metric]:
    name, help = (
        "luthier_certificate_expiry_seconds",
        "When the certificate that is shown expires, in seconds since 1970",
    )
    yield GaugeMetricFamily(name, help, value=certificates.expires)
    changes = CounterMetricFamily("luthier_certificate_changes", "Changes of the files found", labels=["verdict"])
    for verdict, count in certificates.changes.items():
        changes.add_metric([verdict], count)
    yield changes


def _gauge(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def _add(family: HistogramMetricFamily, labels: Sequence[str], distribution: Distribution) -> None:
    total, buckets = 0, list[tuple[str, float]]()
    bounds = [*map(float, distribution.bounds), float("inf")]
    for bound, count in zip(bounds, distribution.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
    family.add_metric(labels, buckets, distribution.total)
