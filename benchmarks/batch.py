"""How much faster a batch prediction is than single calls, for the same predictions.

    python benchmarks/batch.py --home DIR --model banking --dataset banking [--turns 3]

Starts `luthier serve` on a home that was filled before. In turns it predicts for the data set's test part by one
operation, from the call to the last byte of the download, and by one call for each example, one after the other, over
one connection, for the same instances. Compares all predictions, and prints the median of both and their ratio beside
the limit. Exits with 1 where a prediction differs in anything but its sixth decimal, or the ratio is below the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from luthier import datasets, plugins
from luthier.v1 import prediction_pb2, prediction_pb2_grpc
from luthier_client import Client

LIMIT = 5.0


def by_operation(client: Client, model: str, dataset: str, file: Path) -> list[dict[str, Any]]:
    """One operation; its lines."""
    made = client.batch_predict(model, dataset=dataset).result()
    client.download_predictions(made.name, file)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def singly(client: Client, requests: list[prediction_pb2.PredictRequest]) -> list[prediction_pb2.PredictResponse]:
    """A call for each."""
    predict = prediction_pb2_grpc.PredictionServiceStub(client.channel).Predict
    return [predict(request) for request in requests]


def packed(instance: Message) -> AnyMessage:
    """A message as the generic calls take it."""
    message = AnyMessage()
    message.Pack(instance)
    return message


def alike(one: object, other: object) -> bool:
    """Whether two values of JSON are equal up to the last digits of their numbers."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-5
    return one == other


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "luthier", "--home", str(arguments.home), "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    batch, single, differ = [], [], 0
    try:
        assert server.stdout
        address = server.stdout.readline().split()[-1]
        grpc.channel_ready_future(grpc.insecure_channel(address)).result(60)
        with Client(address, timeout=600) as client, tempfile.TemporaryDirectory() as folder:
            version = client.get_dataset(arguments.dataset).latest_version
            examples = datasets.load(arguments.home / "datasets" / version.digest, ["test"])["test"]
            requests = [
                prediction_pb2.PredictRequest(model=arguments.model, instances=[packed(instance)])
                for instance in plugins.load().task(version.task).instances(examples)
            ]
            for _ in range(arguments.turns):
                started = time.monotonic()
                lines = by_operation(client, arguments.model, arguments.dataset, Path(folder) / "predictions.jsonl")
                batch.append(time.monotonic() - started)
                started = time.monotonic()
                answers = singly(client, requests)
                single.append(time.monotonic() - started)
                for line, answer in zip(lines, answers, strict=True):
                    prediction = client.schema.unpack(answer.predictions[0])
                    differ += not alike(line["prediction"], MessageToDict(prediction, preserving_proto_field_name=True))
    finally:
        server.terminate()
        server.wait()
    ratio = statistics.median(single) / statistics.median(batch)
    print(f"{len(lines)} predictions, {differ} differ in {arguments.turns} turns")
    print(f"single calls: median {statistics.median(single):.1f} s of {', '.join(f'{s:.1f}' for s in single)}")
    print(f"batch: median {statistics.median(batch):.1f} s of {', '.join(f'{s:.1f}' for s in batch)}")
    print(f"ratio {ratio:.2f}, at least {LIMIT:.0f}")
    return 0 if ratio >= LIMIT and not differ else 1


if __name__ == "__main__":
    sys.exit(main())
