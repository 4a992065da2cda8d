"""The HTTP front of a server process: a process of its own, which is started again when it dies."""

from __future__ import annotations

import atexit
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from luthier.errors import FailedPrecondition
from luthier.replicas import CannotListen, await_line
from luthier.settings import Settings
from luthier.web.orders import Orders

log = structlog.get_logger()

_LOOK_S = 0.5
_CLOSE_S = 1.0
"""How long the front gets to hand over what it is reading before the gRPC server takes no more calls."""


class Front:
    """Listens for HTTP, and has a process answer by calls of the gRPC server.

    The socket is this process's own, so that nobody finds it closed while the other is started again.
    """

    def __init__(self, settings: Settings, messages: Iterable[type[Message]], services: Iterable[str]) -> None:
        """`services` are the names of those that the server has; `messages` go in and out as Any.

        Raises OSError where there is no place for the folder of the socket between the two.
        """
        self._settings = settings
        # Nobody else may look into it.
        self._directory = tempfile.mkdtemp(prefix="luthier-")
        atexit.register(shutil.rmtree, self._directory, ignore_errors=True)
        self.upstream = f"unix:{self._directory}/grpc"
        """What the gRPC server is to listen on too."""
        pool = descriptor_pool.Default()
        kinds = [error_details_pb2.ErrorInfo, *messages]
        found = [*(kind.DESCRIPTOR.file for kind in kinds), *(pool.FindServiceByName(name).file for name in services)]
        Path(self._directory, "services.binpb").write_bytes(_with_imports(found).SerializeToString())
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="front", daemon=True)

    def start(self, shares_port: bool) -> str:
        """Takes the address and starts the process. Returns the address with its port; raises CannotListen.

        `shares_port` says that other processes of this server listen on it too.
        """
        host, _, port = self._settings.http_listen.rpartition(":")
        try:
            self._socket = _listening(host.strip("[]"), int(port), shares_port)
        except OSError as error:
            raise CannotListen(self._settings.http_listen, "http-listen") from error
        self._process = self._spawn(self._socket)
        return f"{host}:{self._socket.getsockname()[1]}"

    def wait(self) -> None:
        """Returns once it answers; from then on it is replaced when it dies.

        Raises FailedPrecondition where it has ended instead.
        """
        assert self._process
        await_line(self._process)
        if self._process.poll() is not None:
            raise FailedPrecondition("the process that is to answer HTTP has ended; the log says why")
        self._thread.start()

    def close(self) -> None:
        """Has it take no more requests, and waits a moment until those that it has have become calls."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                return

    def stop(self) -> None:
        """Waits until what was begun is answered, after `close` and the end of the calls."""
        if self._process is not None:
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _spawn(self, listening: socket.socket) -> subprocess.Popen[bytes]:
        settings = self._settings
        orders = Orders(
            socket=listening.fileno(),
            directory=self._directory,
            max_request_bytes=settings.max_request_bytes,
            drain_s=settings.drain_s,
            origins=tuple(settings.http_origins),
            certificate=_text(settings.tls_certificate),
            key=_text(settings.tls_key),
            client_ca=_text(settings.tls_client_ca),
        )
        return subprocess.Popen(
            [sys.executable, "-m", "luthier.web", orders.written()],
            # It ends when this is closed, which also the kernel does.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            assert self._process
            assert self._socket
            if self._process.poll() is not None:
                log.error("HTTP process ended", process=self._process.pid, status=self._process.returncode)
                self._process = self._spawn(self._socket)


def _listening(host: str, port: int, shares_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        listening.listen(512)
    except OSError:
        listening.close()
        raise
    return listening


def _with_imports(files: Iterable[FileDescriptor]) -> FileDescriptorSet:
    """The files and all that they import, each after its imports."""
    found = FileDescriptorSet()
    seen = set[str]()

    def add(file: FileDescriptor) -> None:
        if file.name not in seen:
            seen.add(file.name)
            for imported in file.dependencies:
                add(imported)
            file.CopyToProto(found.file.add())

    for file in files:
        add(file)
    return found


def _text(path: Path | None) -> str:
    return str(path.absolute()) if path else ""
