"""MonitoringService."""

from __future__ import annotations

import time
from typing import Any

import grpc

from luthier import paging
from luthier.errors import InvalidArgument
from luthier.monitoring import Monitoring
from luthier.registry import Registry
from luthier.v1 import monitoring_pb2, monitoring_pb2_grpc

DAY_S = 24 * 3600.0
MOST_DAYS = 90
LAST_S = 253_402_300_800.0
"""The end of the year 9999, past which a Timestamp has no moments."""


class MonitoringService(monitoring_pb2_grpc.MonitoringServiceServicer):
    """Windows of live predictions against the profile of their version."""

    def __init__(self, registry: Registry, monitoring: Monitoring) -> None:
        self._registry = registry
        self._monitoring = monitoring

    def GetDrift(self, request: monitoring_pb2.GetDriftRequest, context: grpc.ServicerContext) -> monitoring_pb2.Drift:
        """Looks at one window, now."""
        model, number = self._registry.resolve(request.model, "model")
        window = request.window.ToNanoseconds() / 1e9 if request.HasField("window") else DAY_S
        if not 0 < window <= MOST_DAYS * DAY_S:
            raise InvalidArgument({"window": f"{window:g} s is not above 0 and at most {MOST_DAYS} days"})
        end = request.end_time.seconds + request.end_time.nanos / 1e9 if request.HasField("end_time") else time.time()
        if not window <= end < LAST_S:
            raise InvalidArgument({"end_time": "it is not between 1970 and 9999"})
        return self._monitoring.look(model, number, end - window, end)

    def ListDriftWindows(
        self, request: monitoring_pb2.ListDriftWindowsRequest, context: grpc.ServicerContext
    ) -> monitoring_pb2.ListDriftWindowsResponse:
        """A page, newest first, with the features that moved: with all those of many windows it would be megabytes."""
        model, number = self._registry.resolve(request.model, "model")
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, float)
        found = self._monitoring.windows(model, number, _end_of(key), size + 1)
        token = paging.token_of(found[size - 1][0]) if len(found) > size else ""
        for _, window in found:
            moved = [feature for feature in window.features if feature.alarm]
            del window.features[:]
            window.features.extend(moved)
        return monitoring_pb2.ListDriftWindowsResponse(
            windows=[window for _, window in found[:size]], next_page_token=token
        )


def _end_of(key: list[Any] | None) -> float | None:
    """The end of the last window of the page before."""
    if key is None:
        return None
    if len(key) != 1 or not isinstance(key[0], int | float):
        raise InvalidArgument({"page_token": "it does not come from an earlier answer"})
    return float(key[0])
