"""An S3 server of the tests' own: moto's, over HTTP, in a process of its own; and a gate in front of it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class S3:
    """A server that holds its objects in memory."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def environment(self, port: int = 0) -> dict[str, str]:
        """How a process finds it, or a gate at another port."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ACCESS_KEY_ID": "luthier",
            "AWS_SECRET_ACCESS_KEY": "luthier",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def files(self) -> Any:
        """What is in it."""
        from s3fs import S3FileSystem

        given = self.environment()
        return S3FileSystem(
            endpoint_url=given["AWS_ENDPOINT_URL"],
            key=given["AWS_ACCESS_KEY_ID"],
            secret=given["AWS_SECRET_ACCESS_KEY"],
            use_listings_cache=False,
        )

    def new_bucket(self) -> str:
        """Makes an empty bucket; returns the URL of a folder in it."""
        name = f"test-{uuid.uuid4().hex}"
        self.files.mkdir(name)
        return f"s3://{name}/luthier"


@contextmanager
def s3() -> Iterator[S3]:
    """Starts a server, and ends it."""
    program = "from moto.server import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", program, "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r"127\.0\.0\.1:(\d+)", line)))
        reader = threading.Thread(target=process.stderr.read, daemon=True)
        reader.start()
        yield S3(process, port)
        process.kill()
        reader.join()


class Gate:
    """Passes connections on to a port while it is open, and breaks and refuses them while it is shut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._held: list[socket.socket] = []
        self.port = 0

    def open(self) -> None:
        """Listens, each time at the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Breaks all connections and listens no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        held, self._held = self._held, []
        for end in held:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._held += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with source, suppress(OSError):
        while block := source.recv(2**16):
            sink.sendall(block)
        sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def gate(target: int) -> Iterator[Gate]:
    """An open gate, shut in the end."""
    made = Gate(target)
    made.open()
    yield made
    made.shut()
