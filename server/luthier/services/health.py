"""grpc.health.v1.Health, whose watches end with the server."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from grpc_health.v1 import health, health_pb2


class Health(health.HealthServicer):
    """The health of all services. Clients hold watches open for good: a server that ends would wait for them."""

    def __init__(self) -> None:
        # The other form answers by a callback, which no interceptor understands.
        super().__init__(experimental_non_blocking=False)
        self._ending = False

    def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """Sends each change; NOT_SERVING of a server that ends is the last."""
        for answer in super().Watch(request, context):
            yield answer
            if self._ending:
                return

    def enter_graceful_shutdown(self) -> None:
        """Says NOT_SERVING of all services, for good."""
        self._ending = True
        super().enter_graceful_shutdown()
