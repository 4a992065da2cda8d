"""Asks a server for its health again and again, from a process of its own, until its standard input ends.

    python prober.py ADDRESS

Prints JSON: by how long each answer took, and how late the system woke this process where it slept beside them: what
of a slow answer is the machine's.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PAUSE_S = 0.02


def main(address: str) -> dict[str, list[float]]:
    """Probes until the standard input ends."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    took, late = [], []
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while not over.is_set():
            began = time.perf_counter()
            time.sleep(PAUSE_S)
            asked = time.perf_counter()
            late.append(asked - began - PAUSE_S)
            answer = check(health_pb2.HealthCheckRequest(), timeout=10)
            took.append(time.perf_counter() - asked)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    return {"took": took, "late": late}


if __name__ == "__main__":
    json.dump(main(sys.argv[1]), sys.stdout)
