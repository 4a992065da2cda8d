"""A real server in a process of its own, a real channel to it, and what most tests ask of it."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from luthier.tasks.recommendation.v1 import recommendation_pb2
from luthier.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
)
from luthier.v1.dataset_pb2 import DatasetVersion
from luthier.v1.model_pb2 import ModelVersion

ROOT = Path(__file__).parent.parent
LONG = recommendation_pb2.Config(
    algorithm=recommendation_pb2.ALGORITHM_BPR, factors=512, regularization=0.01, iterations=10_000
)
"""Of a training that can be interrupted: some seconds of work that end by themselves, on a fast machine too."""

S = TypeVar("S")
M = TypeVar("M", bound=Message)


@dataclass
class Server:
    """A running server."""

    address: str
    home: Path
    process: subprocess.Popen[str]
    channel: grpc.Channel
    log: list[str] = field(default_factory=list)

    def stub(self, kind: Callable[[grpc.Channel], S]) -> S:
        return kind(self.channel)

    def wait(self, operation: operations_pb2.Operation, timeout: float = 300.0) -> operations_pb2.Operation:
        """Waits for the end of an operation, well or not."""
        stub = operations_pb2_grpc.OperationsStub(self.channel)
        request = operations_pb2.WaitOperationRequest(name=operation.name)
        request.timeout.FromMilliseconds(int(timeout * 1000))
        done = stub.WaitOperation(request, timeout=timeout + 5)
        assert done.done, f"{operation.name} did not end in {timeout} s"
        return done

    def result(self, operation: operations_pb2.Operation, kind: type[M], timeout: float = 300.0) -> M:
        """Waits for the response of an operation that must succeed."""
        done = self.wait(operation, timeout)
        assert not done.HasField("error"), done.error.message
        message = kind()
        assert done.response.Unpack(message), done.response.type_url
        return message


@contextmanager
def serving(
    home: Path,
    *flags: str,
    listen: str = "127.0.0.1:0",
    credentials: grpc.ChannelCredentials | None = None,
    **environment: str,
) -> Iterator[Server]:
    """Starts a server, waits until it says SERVING, and ends it by SIGTERM. With credentials its channel has TLS."""
    command = [sys.executable, "-m", "luthier", "--home", str(home), "--listen", listen, *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stdout
    assert process.stderr
    log: list[str] = []
    reader = threading.Thread(target=_collect, args=(process.stderr, log), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), "\n".join(log)
        address = line.split()[-1]
        with grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            yield Server(address, home, process, channel, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


def _collect(lines: Iterator[str], log: list[str]) -> None:
    log.extend(lines)


def children(pid: int) -> list[int]:
    """All living descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text(encoding="utf-8").split()):
            found += [child, *children(child)]
    return found


def until_training(server: Server, operation: operations_pb2.Operation) -> None:
    """Returns once the operation is in the middle of its training."""
    stub = server.stub(operation_pb2_grpc.OperationServiceStub)
    for event in stub.WatchOperation(operation_pb2.WatchOperationRequest(name=operation.name), timeout=60):
        if event.HasField("progress") and event.progress.stage == "training":
            return
    raise AssertionError("the training was over before it was seen")


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """The google.rpc.Status of a failed call."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    return status


def upload(server: Server, path: Path, chunk_bytes: int = 2**16) -> str:
    """Uploads a file; returns the upload's name."""
    content = path.read_bytes()
    header = dataset_pb2.UploadHeader(
        filename=path.name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    chunks = [content[start : start + chunk_bytes] for start in range(0, len(content), chunk_bytes)]
    messages = [
        dataset_pb2.UploadFilesRequest(header=header),
        *(dataset_pb2.UploadFilesRequest(chunk=chunk) for chunk in chunks),
    ]
    name: str = server.stub(dataset_pb2_grpc.DatasetServiceStub).UploadFiles(iter(messages)).name
    return name


def create_dataset(server: Server, id: str, task: str, files: Mapping[str, Path], **fields: Any) -> DatasetVersion:
    """Uploads files by role and makes a data set of them; a role that begins with `_` stands for none."""
    request = dataset_pb2.CreateDatasetRequest(
        dataset_id=id,
        task=task,
        files=[
            dataset_pb2.DatasetFile(upload=upload(server, path), role="" if role.startswith("_") else role)
            for role, path in files.items()
        ],
        **fields,
    )
    operation = server.stub(dataset_pb2_grpc.DatasetServiceStub).CreateDataset(request)
    return server.result(operation, DatasetVersion)


def fine_tune(
    server: Server, id: str, task: str, dataset: str, config: Message | None = None, timeout: float = 300, **fields: Any
) -> ModelVersion:
    """Fine-tunes and waits for the version."""
    request = model_pb2.FineTuneRequest(model_id=id, task=task, dataset=f"datasets/{dataset}", **fields)
    if config is not None:
        request.config.Pack(config)
    return server.result(server.stub(model_pb2_grpc.ModelServiceStub).FineTune(request), ModelVersion, timeout)


def interactions(path: Path, users: int = 80, items: int = 50, seed: int = 0) -> Path:
    """Writes a CSV of user, item, weight, time in which three tastes can be told apart."""
    draw = random.Random(seed)
    rows = ["user,item,weight,time"]
    for user in range(users):
        liked = [item for item in range(items) if item % 3 == user % 3]
        others = [item for item in range(items) if item % 3 != user % 3]
        chosen = draw.sample(liked, min(len(liked), 10)) + draw.sample(others, 2)
        rows += [f"u{user},i{item},{draw.randint(1, 5)},{1_600_000_000 + n}" for n, item in enumerate(chosen)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
