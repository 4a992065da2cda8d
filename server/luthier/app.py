"""Putting a server together, running it, and ending it in order."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog
from google.longrunning import operations_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from luthier import plugins
from luthier.access import gate
from luthier.access.audit import Audit
from luthier.access.policy import Policy
from luthier.access.resources import Resources
from luthier.access.tokens import Tokens
from luthier.bases import Catalogue
from luthier.certificates import Certificates, Files, Shown
from luthier.database import Database
from luthier.errors import StoreUnavailable
from luthier.front import Front
from luthier.housekeeping import Housekeeping
from luthier.inference.lanes import Cores
from luthier.inference.pool import ModelPool
from luthier.inference.routing import Router
from luthier.inference.shadows import Shadows
from luthier.inference.threads import Threads
from luthier.journal import Journal
from luthier.judging import Judge
from luthier.monitoring import Monitoring
from luthier.operations import Operations
from luthier.registry import Registry
from luthier.replicas import CannotListen, Replicas, check_free
from luthier.revisions import Revisions
from luthier.rollouts import Rollouts
from luthier.services.access import AccessInterceptor
from luthier.services.admission import Admission
from luthier.services.bases import BaseService
from luthier.services.batch_predictions import BatchPredictionService
from luthier.services.binding import PooledServer
from luthier.services.datasets import DatasetService
from luthier.services.evaluations import EvaluationService
from luthier.services.health import Health
from luthier.services.interceptor import CallInterceptor
from luthier.services.models import ModelService
from luthier.services.monitoring import MonitoringService
from luthier.services.open_inference import OpenInferenceService
from luthier.services.operations import LongRunningService, OperationService
from luthier.services.prediction import PredictionService, typed_handler
from luthier.services.probe import Probe
from luthier.services.rollouts import RolloutService
from luthier.services.tasks import TaskService
from luthier.services.tokens import AuditService, TokenService
from luthier.settings import Settings, is_loopback
from luthier.signals import ending
from luthier.store import Store
from luthier.supervisor import Supervisor
from luthier.telemetry.meters import Meters
from luthier.telemetry.traces import Tracing
from luthier.v1 import (
    access_pb2_grpc,
    base_pb2_grpc,
    batch_prediction_pb2_grpc,
    dataset_pb2_grpc,
    evaluation_pb2_grpc,
    model_pb2_grpc,
    monitoring_pb2_grpc,
    operation_pb2_grpc,
    prediction_pb2_grpc,
    rollout_pb2_grpc,
    task_pb2_grpc,
)
from luthier.watch import Watch

if TYPE_CHECKING:
    from luthier.telemetry.exposition import Exposition

log = structlog.get_logger()

_OPTIONS = {
    # Pings that clients may send: every 20 s, without a call too. Clients of ours send one every 30 s.
    "grpc.http2.min_ping_interval_without_data_ms": 20_000,
    "grpc.keepalive_permit_without_calls": 1,
}


_DOOR = 16
"""How many times more calls may wait for a thread, of all models, than may wait for one model."""


_ASIDE = 256
"""Most calls that wait in lanes, of all models; further ones wait for a thread."""


class App:
    """One server process."""

    def __init__(self, settings: Settings, shares_port: bool = False, shown: Shown | None = None) -> None:
        """`shares_port` says that this is a replica of another process, and `shown` which certificate that shows."""
        self._settings = settings
        self._is_replica = shares_port
        self.first_token: Path | None = None
        """File of the administrator's token that was made, where there was none before."""
        # Before all else: a certificate that cannot be shown is no reason to touch a database.
        self._certificates = _certificates(settings, shown)
        self._replicas = Replicas(settings, settings.processes - 1, self._certificates)
        self._store = Store(settings.home, settings.artefacts)
        self._store.check()
        self._database = Database(settings.database)
        self._database.migrate()
        self._plugins = plugins.load()
        for failure in self._plugins.failures:
            log.error("plugin failed", plugin=failure.plugin, why=failure.reason)
        self._registry = Registry(self._database)
        self._operations = Operations(self._database)
        self._rollouts = Rollouts(self._database)
        self._meters = Meters()
        self._tracing = Tracing(settings.traces_endpoint, settings.traces_ratio) if settings.traces_endpoint else None
        self._exposition: Exposition | None = None
        self._http_address = ""
        self._probe: Probe | None = None
        count = settings.prediction_threads
        self._predictions = Threads(count, most=count + _ASIDE)
        self._pool = ModelPool(
            self._registry,
            self._store,
            self._plugins,
            self._meters,
            Cores(count, self._predictions),
            device=settings.serve_device,
            most_waiting=settings.most_waiting,
            memory_mb=settings.serve_memory_mb,
            policies=self._rollouts.policies,
        )
        self._journal = Journal(self._database, settings.keep_predictions_days)
        self._shadows = Shadows(self._predictions)
        self._router = Router(self._pool, self._journal, self._shadows)
        self._judge = Judge(
            self._rollouts,
            self._journal,
            self._registry,
            self._plugins,
            self._pool.splits,
            self._router.broken,
            self._router.broke,
        )
        self._tokens = Tokens(self._database)
        self._audit = Audit(self._database)
        self._gate = self._make_gate()
        others = {"tokens": self._tokens.refresh} if self._gate is not None else {}
        self._revisions = Revisions(self._database, settings.poll_s, self._pool.refresh, others)
        self._supervisor = Supervisor(settings, self._operations, self._store)
        self._housekeeping = Housekeeping(
            self._registry,
            self._operations,
            self._store,
            self._audit,
            self._journal,
            keep_operations_days=settings.keep_operations_days,
            keep_audit_days=settings.keep_audit_days,
            keep_predictions_days=settings.keep_predictions_days,
            most_predictions=settings.most_predictions,
        )
        self._monitoring = Monitoring(self._database, self._registry, self._store, self._plugins, self._journal)
        self._watch = Watch(self._monitoring, settings.drift_interval_s, settings.drift_window_s)
        self._health = Health()
        self._control = ThreadPoolExecutor(settings.control_threads, thread_name_prefix="control")
        self._streams = ThreadPoolExecutor(settings.stream_threads, thread_name_prefix="stream")
        # Whoever asks for the health is not to wait for the calls that use the database.
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="health")
        self._server, self._names = self._bind()
        self._front = self._fronted() if settings.http_listen else None

    def _bind(self) -> tuple[grpc.Server, list[str]]:
        """The gRPC server with every service in its pool, and the services' names."""
        options = _OPTIONS | {
            "grpc.max_receive_message_length": self._settings.max_request_bytes,
            # Otherwise a second server must not take the port silently.
            "grpc.so_reuseport": int(self._is_replica or self._settings.processes > 1),
        }
        admission = Admission(self._predictions, self._control, _DOOR * self._settings.most_waiting)
        interceptors: list[grpc.ServerInterceptor] = [CallInterceptor(self._meters, self._tracing), admission]
        if self._gate is not None:
            policy = Policy(self._plugins.tasks.values(), Resources(self._database).may)
            interceptors.insert(1, AccessInterceptor(self._gate, policy, self._audit))
        server = grpc.server(self._predictions, interceptors=interceptors, options=list(options.items()))
        pooled = PooledServer(server, self._control, self._streams)
        catalogue = Catalogue.load(self._settings.home / "bases.toml", self._database)
        registry, store, operations = self._registry, self._store, self._operations

        task_pb2_grpc.add_TaskServiceServicer_to_server(TaskService(self._plugins), pooled)
        base_pb2_grpc.add_BaseServiceServicer_to_server(
            BaseService(catalogue, store, operations, registry, self._plugins), pooled
        )
        dataset_pb2_grpc.add_DatasetServiceServicer_to_server(
            DatasetService(registry, store, operations, self._plugins, self._settings.upload_idle_s), pooled
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(registry, store, operations, self._plugins, catalogue), pooled
        )
        evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(
            EvaluationService(registry, store, operations), pooled
        )
        monitoring_pb2_grpc.add_MonitoringServiceServicer_to_server(
            MonitoringService(registry, self._monitoring), pooled
        )
        batch_prediction_pb2_grpc.add_BatchPredictionServiceServicer_to_server(
            BatchPredictionService(registry, store, operations), pooled
        )
        operations_pb2_grpc.add_OperationsServicer_to_server(
            LongRunningService(operations, store, self._revisions), pooled
        )
        operation_pb2_grpc.add_OperationServiceServicer_to_server(OperationService(operations, self._revisions), pooled)
        asking = self._gate is not None
        access_pb2_grpc.add_TokenServiceServicer_to_server(TokenService(self._tokens, asking), pooled)
        access_pb2_grpc.add_AuditServiceServicer_to_server(AuditService(self._audit, asking), pooled)
        predicting = PooledServer(server, None, self._streams)
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self._router, self._journal, registry, self._plugins), predicting
        )
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(
            RolloutService(self._rollouts, self._judge, registry, store, self._plugins, self._revisions), pooled
        )
        predicting.add_generic_rpc_handlers([OpenInferenceService(self._pool, self._router, self._is_ready).handler()])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, PooledServer(server, self._checks, self._streams))
        for task in self._plugins.tasks.values():
            server.add_generic_rpc_handlers([typed_handler(self._router, task)])

        names = [
            *(f"luthier.v1.{name}Service" for name in _SERVICES),
            "google.longrunning.Operations",
            "inference.GRPCInferenceService",
            *(task.service.full_name for task in self._plugins.tasks.values()),
            health.SERVICE_NAME,
            reflection.SERVICE_NAME,
        ]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.ReflectionServicer(names), pooled)
        return server, names

    def _fronted(self) -> Front:
        """The HTTP front, which speaks for whoever calls it."""
        kinds = [kind for task in self._plugins.tasks.values() for kind in (task.config, task.example)]
        return Front(self._settings, kinds, self._names)

    def _make_gate(self) -> gate.Gate | None:
        """Who tells callers apart, where the settings ask for it; raises CannotOpen."""
        settings = self._settings
        if not settings.tokens:
            return None
        hook = self._plugins.manager.hook.luthier_authenticate
        ask: gate.Ask | None = (lambda credentials: hook(credentials=credentials)) if hook.get_hookimpls() else None
        made = gate.make(
            self._tokens,
            ask,
            policy=settings.policy,
            jwt_keys=settings.jwt_keys,
            jwt_audience=settings.jwt_audience,
            jwt_issuer=settings.jwt_issuer,
        )
        if not settings.jwt_keys and not self._is_replica:
            self.first_token = self._tokens.bootstrap(settings.home)
            if self.first_token is not None:
                log.warning("no token yet; an administrator's is made", path=str(self.first_token))
        return made

    def start(self) -> int:
        """Binds the port, loads every model that has an alias, then says SERVING. Returns the port.

        Raises CannotListen.
        """
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._gate is not None:
            self._gate.start()
        if self._is_replica:
            # A caller who is given to this process is to find its models.
            self._load()
            port = self._listen()
        else:
            port = self._listen()
            self._replicas.start(f"{self._settings.listen.rpartition(':')[0]}:{port}", self._http_address)
            self._load()
            self._replicas.wait()
        if self._front is not None:
            self._front.wait()
            log.info("http", address=self._http_address)
        self._revisions.start()
        if self._certificates is not None:
            self._certificates.start()
        self._supervisor.start()
        self._judge.start()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._housekeeping.start()
        self._watch.start()
        return port

    def _listen(self) -> int:
        """Binds the port and begins to answer."""
        self._journal.start()
        self._shadows.start()
        if self._settings.processes > 1:
            check_free(self._settings.listen)
        try:
            if self._certificates is None:
                port: int = self._server.add_insecure_port(self._settings.listen)
            else:
                port = self._server.add_secure_port(self._settings.listen, self._certificates.credentials())
        except RuntimeError as error:
            raise CannotListen(self._settings.listen, "listen") from error
        if self._front is not None:
            # Nobody else can open it, so that it needs no TLS.
            self._server.add_insecure_port(self._front.upstream)
            if self._settings.processes > 1:
                check_free(self._settings.http_listen, "http-listen")
            self._http_address = self._front.start(self._is_replica or self._settings.processes > 1)
        self._expose()
        if self._settings.health_listen:
            try:
                self._probe = Probe(self._settings.health_listen, self._health)
            except RuntimeError as error:
                raise CannotListen(self._settings.health_listen, "health-listen") from error
            log.info("health", address=self._probe.address)
        self._server.start()
        return port

    def _load(self) -> None:
        try:
            self._pool.refresh()
        except StoreUnavailable as error:
            # The others can be served; these are tried again at each look for changes.
            log.warning("artefacts unreachable", why=error.message)

    def stop(self) -> None:
        """Says NOT_SERVING, lets calls in flight finish, gives operations back and closes everything."""
        self._health.enter_graceful_shutdown()
        if self._front is not None:
            self._front.close()
        stopped = self._server.stop(self._settings.drain_s)
        self._replicas.stop()
        self._watch.stop()
        self._housekeeping.stop()
        self._supervisor.stop()
        self._judge.stop()
        self._revisions.stop()
        if self._certificates is not None:
            self._certificates.stop()
        if self._gate is not None:
            self._gate.stop()
        self._pool.close()
        stopped.wait()
        if self._front is not None:
            self._front.stop()
        self._shadows.stop()
        self._journal.stop()
        if self._tracing is not None:
            self._tracing.stop()
        if self._exposition is not None:
            self._exposition.close()
        if self._probe is not None:
            self._probe.close()
        for pool in (self._predictions, self._control, self._streams, self._checks):
            pool.shutdown()
        self._database.close()

    def _expose(self) -> None:
        """Opens the metrics' own port, where the settings name one; raises CannotListen."""
        if not self._settings.metrics_listen:
            return
        # Half a tenth of a second that only those pay who want it.
        from luthier.telemetry.exposition import Exposition, Pool, Sources

        sources = Sources(
            meters=self._meters,
            operations=self._operations.count,
            models_loaded=lambda: len(self._pool.loaded()),
            drift=self._monitoring.newest,
            pools={
                "predictions": Pool(self._settings.prediction_threads, lambda: self._predictions.waiting),
                "control": Pool.of(self._control),
                "streams": Pool.of(self._streams),
            },
            certificates=self._certificates,
            dropped=lambda: {"records": self._journal.dropped, "shadows": self._shadows.dropped},
        )
        # On loopback nothing is hidden from anyone by encrypting it.
        is_open = not is_loopback(self._settings.metrics_listen)
        context = self._certificates.context() if self._certificates is not None and is_open else None
        try:
            self._exposition = Exposition(self._settings.metrics_listen, sources, context)
        except OSError as error:
            raise CannotListen(self._settings.metrics_listen, "metrics-listen") from error
        log.info("metrics", address=self._exposition.address)

    def _is_ready(self) -> bool:
        answer = self._health.Check(health_pb2.HealthCheckRequest(), None)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _set_health(self, status: int) -> None:
        for name in ("", *self._names):
            self._health.set(name, status)


_SERVICES = (
    "Task",
    "Base",
    "Dataset",
    "Model",
    "Evaluation",
    "Prediction",
    "BatchPrediction",
    "Monitoring",
    "Operation",
    "Token",
    "Audit",
    "Rollout",
)


def _certificates(settings: Settings, last_good: Shown | None) -> Certificates | None:
    """What the settings name; raises BadCertificate where it cannot be shown."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificates(Files(settings.tls_certificate, settings.tls_key, settings.tls_client_ca), last_good)


def run(settings: Settings, shares_port: bool = False, shown: Shown | None = None) -> int:
    """Serves until SIGTERM or SIGINT, and returns an exit status: 0, or 1 where it cannot listen.

    Raises BadCertificate where the certificate of the settings cannot be shown.
    """
    ended = ending()
    try:
        app = App(settings, shares_port, shown)
        port = app.start()
    except gate.CannotOpen as error:
        for problem in error.problems:
            print(f"luthier serve: {problem}", file=sys.stderr)
        return 1
    except CannotListen as error:
        print(f"luthier serve: {error}; choose another with --{error.flag}", file=sys.stderr)
        return 1
    host = settings.listen.rpartition(":")[0]
    print(f"listening on {host}:{port}", flush=True)
    if app.first_token is not None:
        print(f"an administrator's token is in {app.first_token}", flush=True)
    # What is there now stays; the collector need not look at it again.
    gc.freeze()
    gc.enable()
    ended.get()
    log.info("stopping")
    app.stop()
    return 0
