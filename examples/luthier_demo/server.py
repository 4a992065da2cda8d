"""A Luthier server of one's own, as a child process."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_S = 30.0
"""How long a server may take to say that it listens, and then that it serves."""
END_S = 25.0
"""How long it may take to end in order; it lets calls in flight finish for up to 20 s."""

_LISTENING = "listening on "
SERVING = health_pb2.HealthCheckResponse.SERVING


class ServerFailed(Exception):
    """The server did not come up; the message says why."""


@contextmanager
def serve(home: Path) -> Iterator[Server]:
    """Starts a server on a free port of 127.0.0.1, waits until it says SERVING, and ends it behind the block.

    Its log goes to `server.log` in the home. Raises ServerFailed.
    """
    log = home / "server.log"
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "luthier", "--home", str(home), "--listen", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            # A terminal's Ctrl-C is for us: the server is then ended in order, after its clients.
            start_new_session=True,
        )
    try:
        address = _address(process, log)
        _wait_until_serving(address)
        yield Server(process, address)
    finally:
        end(process)


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.address = address
        """`127.0.0.1:port`."""
        self._process = process

    def wait(self) -> None:
        """Waits for its end, which nobody asked for: raises ServerFailed."""
        raise ServerFailed(f"the server ended by itself with status {self._process.wait()}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a child process: in order, or where it does not end so, by force."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        if process.stdout:
            process.stdout.close()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the server says that it listens on, in its first line."""
    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline().decode().strip() if ready else ""
    if line.startswith(_LISTENING):
        return line.removeprefix(_LISTENING)
    said = "\n".join(log.read_text(encoding="utf-8").splitlines()[-20:])
    raise ServerFailed(f"the server did not start within {START_S:.0f} s; it said:\n{said or '(nothing)'}")


def _wait_until_serving(address: str) -> None:
    deadline = time.monotonic() + START_S
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while (
            said := stub.Check(health_pb2.HealthCheckRequest(), timeout=START_S, wait_for_ready=True)
        ).status != SERVING:
            if time.monotonic() > deadline:
                status = health_pb2.HealthCheckResponse.ServingStatus.Name(said.status)
                raise ServerFailed(f"the server still says {status} after {START_S:.0f} s")
            time.sleep(0.1)
