"""Operations of several servers on one database, and servers and databases that fall over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from google.longrunning import operations_pb2, operations_pb2_grpc

from luthier.database import operations
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import model_pb2, model_pb2_grpc, operation_pb2
from postgres import Cluster
from support import LONG, Server, children, create_dataset, fine_tune, interactions, serving, until_training

QUICK = recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)


def submit(server: Server, model: str, config: recommendation.Config = QUICK) -> operations_pb2.Operation:
    request = model_pb2.FineTuneRequest(model_id=model, task="recommendation", dataset="datasets/shop")
    request.config.Pack(config)
    return server.stub(model_pb2_grpc.ModelServiceStub).FineTune(request, timeout=20)


def shop(server: Server, folder: Path) -> None:
    create_dataset(server, "shop", "recommendation", {"_": interactions(folder / "shop.csv")})


def versions(server: Server, model: str) -> list[model_pb2.ModelVersion]:
    request = model_pb2.ListModelVersionsRequest(parent=f"models/{model}", page_size=1000)
    return list(server.stub(model_pb2_grpc.ModelServiceStub).ListModelVersions(request).model_versions)


def metadata(operation: operations_pb2.Operation) -> operation_pb2.OperationMetadata:
    found = operation_pb2.OperationMetadata()
    assert operation.metadata.Unpack(found)
    return found


def put_to_sleep(processes: list[int], database_url: str) -> None:
    """Stops processes between two transactions: asleep in one they would keep the database from everybody."""
    patience = {"timeout": 0.2} if database_url.startswith("sqlite") else {"options": "-c lock_timeout=200"}
    engine = sa.create_engine(database_url, connect_args=patience, poolclass=sa.NullPool)
    for _ in range(20):
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            with engine.connect() as connection:
                connection.execute(operations.update().values(attempt=operations.c.attempt))
                return
        except sa.exc.OperationalError:
            for pid in processes:
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.1)
    raise AssertionError("they are always in a transaction")


@pytest.mark.parametrize("count", [16, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(2400)])])
def test_two_servers_publish_each_operation_once(tmp_path: Path, database_url: str, count: int) -> None:
    flags = ["--database-url", database_url, "--trainings", "2"]
    with serving(tmp_path, *flags) as one, serving(tmp_path, *flags) as two:
        shop(one, tmp_path)
        submitted = [submit((one, two)[n % 2], f"m{n % 3}") for n in range(count)]
        done = [one.wait(operation, 600) for operation in submitted]
        published = []
        for operation in done:
            version = model_pb2.ModelVersion()
            assert operation.response.Unpack(version), operation
            published.append(version.name)
        assert {metadata(operation).attempt for operation in done} == {1}
        assert len(set(published)) == count
        assert sorted(published) == sorted(version.name for n in range(3) for version in versions(two, f"m{n}"))
        workers = ["\n".join(server.log).count("worker starts") for server in (one, two)]
        assert min(workers) > 0, "one server did all the work"


def test_a_worker_takes_up_what_a_server_is_asked(tmp_path: Path, database_url: str) -> None:
    flags = ["--home", str(tmp_path), "--database-url", database_url]
    command = [sys.executable, "-m", "luthier", "worker", *flags]
    with (
        serving(tmp_path, *flags[2:], "--trainings", "0") as server,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker,
    ):
        shop(server, tmp_path)
        version = server.result(submit(server, "m"), model_pb2.ModelVersion)
        asked = recommendation.RecommendRequest(model="m", instances=[recommendation.Instance(user="u1")])
        answer = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend
        assert answer(asked).model_version == version.name
        left = submit(server, "n", LONG)
        until_training(server, left)
        worker.terminate()
        assert worker.wait(20) == 0
        found = server.stub(operations_pb2_grpc.OperationsStub).GetOperation(
            operations_pb2.GetOperationRequest(name=left.name)
        )
        assert metadata(found).state == operation_pb2.OperationMetadata.STATE_PENDING


def test_a_worker_that_slept_past_its_lease_publishes_nothing(tmp_path: Path, database_url: str) -> None:
    flags = ["--database-url", database_url, "--lease-s", "1"]
    with serving(tmp_path, *flags) as one:
        shop(one, tmp_path)
        operation = submit(one, "m", LONG)
        until_training(one, operation)
        asleep = children(one.process.pid)
        put_to_sleep(asleep, database_url)
        with serving(tmp_path, *flags) as two:
            done = two.wait(operation)
            assert metadata(done).attempt == 2
            for pid in asleep:
                os.kill(pid, signal.SIGCONT)
            deadline = time.monotonic() + 20
            while [pid for pid in asleep if Path(f"/proc/{pid}/exe").exists()]:
                assert time.monotonic() < deadline, "the stale worker goes on"
                time.sleep(0.1)
            assert len(versions(two, "m")) == 1
    assert "lease lost" in "\n".join(one.log)


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(2400)])])
def test_every_acknowledged_operation_ends_whenever_the_server_is_killed(
    tmp_path: Path, database_url: str, kills: int
) -> None:
    flags = ["--database-url", database_url, "--lease-s", "1", "--trainings", "2"]
    draw = random.Random(os.environ.get("LUTHIER_SEED", "0"))
    acknowledged: list[operations_pb2.Operation] = []
    with serving(tmp_path, *flags) as server:
        shop(server, tmp_path)

    def ask(server: Server, turn: int) -> None:
        """Submits until the server is gone; what was answered is acknowledged."""
        for n in range(4):
            try:
                acknowledged.append(submit(server, f"m{turn}-{n}"))
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                return
            time.sleep(draw.uniform(0, 0.5))

    for turn in range(kills):
        with serving(tmp_path, *flags) as server:
            caller = threading.Thread(target=ask, args=(server, turn))
            caller.start()
            time.sleep(draw.uniform(0, 3))
            server.process.kill()
            caller.join()
    assert len(acknowledged) >= kills
    with serving(tmp_path, *flags) as server:
        for operation in acknowledged:
            done = server.wait(operation)
            model = metadata(done).target.partition("/")[2]
            if done.HasField("error"):
                assert "gave up" in done.error.message
            else:
                assert len(versions(server, model)) == 1


def test_a_database_that_falls_over_is_unavailable_for_a_moment(tmp_path: Path, cluster: Cluster) -> None:
    with serving(tmp_path, "--database-url", cluster.new_database()) as server:
        shop(server, tmp_path)
        fine_tune(server, "m", "recommendation", "shop", QUICK)
        models = server.stub(model_pb2_grpc.ModelServiceStub)
        predict = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend
        operation = submit(server, "n", LONG)
        codes: Counter[grpc.StatusCode] = Counter()
        last_failure, over = [0.0], threading.Event()

        def call() -> None:
            while not over.is_set():
                try:
                    models.ListModels(model_pb2.ListModelsRequest(), timeout=20)
                    codes[grpc.StatusCode.OK] += 1
                except grpc.RpcError as error:
                    codes[error.code()] += 1
                    last_failure[0] = time.monotonic()

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        time.sleep(0.5)
        cluster.restart()
        restarted = time.monotonic()
        asked = recommendation.RecommendRequest(model="m", instances=[recommendation.Instance(user="u1")])
        while time.monotonic() < restarted + 10:
            assert predict(asked, timeout=5).model_version == "models/m/versions/1"
        over.set()
        for caller in callers:
            caller.join()
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, codes
        assert codes[grpc.StatusCode.UNAVAILABLE], "the restart was not noticed: this test shows nothing"
        assert last_failure[0] < restarted + 9, "it had not recovered"
        assert server.result(operation, model_pb2.ModelVersion).name == "models/n/versions/1"
