"""How soon a server is ready and how much memory it holds, with the models of a home that was filled before.

    python benchmarks/footprint.py --home DIR --predict 'banking=…' [--turns 5] [--megabytes 350]

Starts `luthier serve` on the home, asks health until it says SERVING, then at once predicts one instance of each model
named by `--predict MODEL=JSON`, or `--predict MODEL=@FILE` for an image. Prints the median over the turns beside the
limits: 1500 ms, 100 ms, and what `--megabytes` says.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from luthier.v1 import prediction_pb2, prediction_pb2_grpc
from luthier_client import Client

LIMITS = {"serving_ms": 1500.0, "first_predict_ms": 100.0}


def turn(home: Path, predictions: list[tuple[str, str]]) -> dict[str, float]:
    started = time.monotonic()
    command = [sys.executable, "-m", "luthier", "--home", str(home), "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout
        address = server.stdout.readline().split()[-1]
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while health.Check(health_pb2.HealthCheckRequest()).status != health_pb2.HealthCheckResponse.SERVING:
                time.sleep(0.005)
            serving = time.monotonic() - started
        slowest = 0.0
        with Client(address) as client:
            stub = prediction_pb2_grpc.PredictionServiceStub(client.channel)
            for model, instance in predictions:
                # The message is made before, so that the clock runs over the prediction alone.
                kind = client.get_task(client.get_model(model).task).methods[0].instance_type
                packed = client.schema.pack(fields_of(instance), kind, "instance")
                request = prediction_pb2.PredictRequest(model=model, instances=[packed])
                started = time.monotonic()
                stub.Predict(request)
                slowest = max(slowest, time.monotonic() - started)
        status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
        resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
        return {"serving_ms": serving * 1e3, "first_predict_ms": slowest * 1e3, "resident_mb": resident}
    finally:
        server.terminate()
        server.wait()


def fields_of(instance: str) -> dict[str, object]:
    """The fields of an instance that is written as JSON, or as the file of its image."""
    if instance.startswith("@"):
        return {"image": base64.b64encode(Path(instance[1:]).read_bytes()).decode()}
    fields: dict[str, object] = json.loads(instance)
    return fields


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--predict", action="append", default=[], metavar="MODEL=JSON|@FILE")
    parser.add_argument("--megabytes", type=float, default=350.0)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    predictions = [tuple(each.split("=", 1)) for each in arguments.predict]
    turns = [turn(arguments.home, predictions) for _ in range(arguments.turns)]
    kept = True
    for name, limit in (LIMITS | {"resident_mb": arguments.megabytes}).items():
        values = [each[name] for each in turns]
        kept &= statistics.median(values) <= limit
        print(f"{name}: median {statistics.median(values):.0f}, worst {max(values):.0f}, limit {limit:.0f}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
