"""A real server in a process of its own, and a real channel to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

ROOT = Path(__file__).parent.parent

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
def serving(home: Path, *flags: str, listen: str = "127.0.0.1:0", **environment: str) -> Iterator[Server]:
    """Starts a server, waits until it says SERVING, and ends it by SIGTERM."""
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
        with grpc.insecure_channel(address) as channel:
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


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """The google.rpc.Status of a failed call."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    return status


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as usable as they found it."""
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real data sets and weights."""
    folder = Path(os.environ.get("LUTHIER_REALDATA", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("real data sets are needed: set LUTHIER_REALDATA to the folder that holds data/ and weights/")
    return folder
