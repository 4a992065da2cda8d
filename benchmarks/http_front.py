"""What HTTP costs a prediction: the same recommendations by gRPC, and as JSON over HTTP, in turns on one server.

    python benchmarks/http_front.py [--turns 5] [--seconds 2] [--in-flight 1,8]

Both clients send bytes that were made before, and read no more of an answer than where it ends.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests")]

import grpc  # noqa: E402 -- after the path

from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb  # noqa: E402
from over_http import address_of  # noqa: E402
from support import create_dataset, fine_tune, interactions, serving  # noqa: E402

METHOD = "/luthier.tasks.recommendation.v1.RecommendationService/Recommend"
USERS, ITEMS = 2000, 2000
WARM_UP_S = 0.5

Ask = Callable[[str], None]


def over_grpc(address: str) -> Ask:
    """Asks by a channel of its own."""
    channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
    call = channel.unary_unary(METHOD)

    def ask(user: str) -> None:
        request = pb.RecommendRequest(model="shop", instances=[pb.Instance(user=user)])
        call(request.SerializeToString(), timeout=30)

    return ask


def over_http(address: str) -> Ask:
    """Asks by a connection of its own."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answers = connection.makefile("rb")

    def ask(user: str) -> None:
        body = json.dumps({"model": "shop", "instances": [{"user": user}]})
        head = f"POST {METHOD} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
        length = 0
        while (line := answers.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answers.read(length)

    return ask


def drive(askers: list[Ask], seconds: float) -> tuple[float, float]:
    """Calls a second, and the median of a call in milliseconds."""
    until = time.perf_counter() + seconds
    taken: list[list[float]] = [[] for _ in askers]

    def work(ask: Ask, into: list[float], draw: random.Random) -> None:
        while (began := time.perf_counter()) < until:
            ask(f"u{draw.randrange(USERS)}")
            into.append(time.perf_counter() - began)

    threads = [
        threading.Thread(target=work, args=(ask, into, random.Random(i)))
        for i, (ask, into) in enumerate(zip(askers, taken, strict=True))
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = [one for into in taken for one in into]
    return len(calls) / (time.perf_counter() - began), statistics.median(calls) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--in-flight", default="1,8", help="[%(default)s]")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    with serving(home / "home", "--http-listen", "127.0.0.1:0") as server:
        path = interactions(home / "shop.csv", USERS, ITEMS)
        create_dataset(server, "shop", "recommendation", {"_": path})
        config = pb.Config(algorithm=pb.ALGORITHM_EASE, regularization=10)
        fine_tune(server, "shop", "recommendation", "shop", config)
        for count in map(int, arguments.in_flight.split(",")):
            ways = {
                "gRPC": [over_grpc(server.address) for _ in range(count)],
                "HTTP": [over_http(address_of(server)) for _ in range(count)],
            }
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(arguments.turns):
                for way, askers in ways.items():
                    drive(askers, WARM_UP_S)
                    found[way].append(drive(askers, arguments.seconds))
            for way, turns in found.items():
                rate, p50 = (statistics.median(column) for column in zip(*turns, strict=True))
                print(f"{count} in flight  {way}  {rate:8.1f}/s  p50 {p50:.2f} ms", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
