"""Several server processes on one port: all answer, one that dies is replaced, and all end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from luthier.oip.v2 import open_inference_pb2 as oip
from luthier.oip.v2 import open_inference_pb2_grpc as oip_grpc
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import model_pb2, model_pb2_grpc
from scrapes import parsed, text_at, value, wait_for_lines
from support import LONG, Server, children, create_dataset, fine_tune, interactions, serving, until_training

EASE = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)
REQUEST = recommendation.RecommendRequest(model="shop", instances=[recommendation.Instance(user="u1")])


def replicas_of(server: Server) -> list[int]:
    """The process ids of the others on a server's port."""
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text(encoding="utf-8").split()]
    return [int(child) for child in children if b"luthier.replica" in Path(f"/proc/{child}/cmdline").read_bytes()]


@contextmanager
def channels(server: Server, count: int) -> Iterator[list[grpc.Channel]]:
    """Connections of their own, which the kernel gives to one process or another.

    A call that was sent to a process just before it died has no answer: as clients do, it is sent once more.
    """
    retry = {"maxAttempts": 3, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2}
    policy = {"methodConfig": [{"name": [{}], "retryPolicy": retry | {"retryableStatusCodes": ["UNAVAILABLE"]}}]}
    with ExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.service_config", json.dumps(policy))]
        yield [stack.enter_context(grpc.insecure_channel(server.address, options)) for _ in range(count)]


def ask(channel: grpc.Channel) -> str:
    stub = recommendation_grpc.RecommendationServiceStub(channel)
    return stub.Recommend(REQUEST, timeout=20, wait_for_ready=True).model_version


def test_several_processes_are_one_server(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "3") as server:
        [first, second] = replicas_of(server)
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        fine_tune(server, "shop", "recommendation", "shop", EASE)
        fine_tune(server, "shop", "recommendation", "shop", recommendation.Config(algorithm=EASE.algorithm))
        time.sleep(0.5)
        with channels(server, 24) as opened:
            assert {ask(channel) for channel in opened} == {"models/shop/versions/1"}
            counts = set()
            for channel in opened:
                statistics = oip_grpc.GRPCInferenceServiceStub(channel).ModelStatistics(oip.ModelStatisticsRequest())
                counts.add(sum(one.inference_count for one in statistics.model_stats if one.version == "1"))
            # Each process counts its own; had one answered all, it would have counted all.
            assert len(opened) not in counts
            assert all(0 < count < len(opened) for count in counts)

            moved = model_pb2.SetAliasRequest(
                name="models/shop/aliases/production", model_version="models/shop/versions/2"
            )
            server.stub(model_pb2_grpc.ModelServiceStub).SetAlias(moved)
            time.sleep(0.5)
            assert {ask(channel) for channel in opened} == {"models/shop/versions/2"}

            os.kill(first, signal.SIGKILL)
            assert {ask(channel) for channel in opened} == {"models/shop/versions/2"}
        deadline = time.monotonic() + 20
        while len(replicas_of(server)) < 2 or first in replicas_of(server):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with channels(server, 12) as opened:
            assert {ask(channel) for channel in opened} == {"models/shop/versions/2"}
        left = replicas_of(server)
        assert second in left
    assert server.process.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def test_they_end_with_the_server_that_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2") as server:
        left = replicas_of(server)
        server.process.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_port_that_another_server_shares_is_still_taken(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2") as server:
        second = subprocess.run(
            [
                sys.executable,
                "-m",
                "luthier",
                "--home",
                tmp_path / "two",
                "--listen",
                server.address,
                "--processes",
                "2",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert f"cannot listen on {server.address}" in second.stderr


def test_settings_are_in_no_arguments(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2") as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        asked = model_pb2.FineTuneRequest(model_id="long", task="recommendation", dataset="datasets/shop")
        asked.config.Pack(LONG)
        operation = server.stub(model_pb2_grpc.ModelServiceStub).FineTune(asked)
        until_training(server, operation)
        lines = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children(server.process.pid)]
        assert {b"luthier.replica", b"luthier.worker", b"luthier.worker.trainer"} <= set(b"\0".join(lines).split(b"\0"))
        # The URL of the database may have a password in it.
        assert not any(b"database_url" in line for line in lines)


def test_each_process_shows_its_own_metrics(tmp_path: Path) -> None:
    with serving(tmp_path, "--processes", "2", "--metrics-listen", "127.0.0.1:0") as server:
        with channels(server, 16) as opened:
            for channel in opened:
                oip_grpc.GRPCInferenceServiceStub(channel).ServerLive(oip.ServerLiveRequest(), wait_for_ready=True)
        labels = {"method": "/inference.GRPCInferenceService/ServerLive", "code": "OK"}
        shown = [parsed(text_at(line["address"])) for line in wait_for_lines(server, "metrics", 2)]
        counts = [value(one, "luthier_calls_total", **labels) for one in shown]
        assert sum(counts) == 16
        assert all(counts)
