"""Health on a port of its own, for those who cannot speak TLS: the probes of Kubernetes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2

_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 4096))
_MOST = 16
"""Calls at once; further ones are refused."""


class Probe:
    """Answers `grpc.health.v1.Health/Check` and nothing else: a watch would hold a thread for as long as it likes."""

    def __init__(self, listen: str, servicer: health.HealthServicer) -> None:
        """Raises RuntimeError where the address cannot be had."""
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="probe")
        self._server = grpc.server(self._threads, options=_OPTIONS, maximum_concurrent_rpcs=_MOST)
        check = grpc.unary_unary_rpc_method_handler(
            servicer.Check,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(health.SERVICE_NAME, {"Check": check})
        self._server.add_generic_rpc_handlers([handler])
        port = self._server.add_insecure_port(listen)
        self.address = f"{listen.rpartition(':')[0]}:{port}"
        self._server.start()

    def close(self) -> None:
        """Ends it."""
        self._server.stop(None).wait()
        self._threads.shutdown()
