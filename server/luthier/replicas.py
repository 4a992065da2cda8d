"""More server processes on one port: where one interpreter cannot use all cores."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading

import structlog

from luthier.certificates import Certificates
from luthier.settings import Settings

log = structlog.get_logger()

READY_S = 120.0
"""Longest time that a process gets to load its models."""
_LOOK_S = 0.5


class CannotListen(Exception):
    """The address of a setting is taken by another process, or none of this machine."""

    def __init__(self, address: str, flag: str) -> None:
        super().__init__(f"cannot listen on {address}: another process has it, or it is not of this machine")
        self.flag = flag


def check_free(address: str, flag: str = "listen") -> None:
    """Raises CannotListen where another program listens: with a port that is shared nobody else would say so."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # Connections of a server that has just ended do not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise CannotListen(address, flag) from error


class Replicas:
    """`count` processes that answer on this server's port too, and are started again when they die.

    They share the database and the home with it as any replica does, and take up no operations.
    """

    def __init__(self, settings: Settings, count: int, certificates: Certificates | None = None) -> None:
        """With `certificates`, what is shown at a process's start is there for it too, whatever is in the files."""
        self._settings = settings
        self._count = count
        self._certificates = certificates
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="replicas", daemon=True)

    def start(self, address: str, http_address: str = "") -> None:
        """Starts them; they listen on an address once they have loaded their models, and on one for HTTP, if any."""
        self._settings = self._settings.model_copy(
            update={
                "listen": address,
                "http_listen": http_address,
                "trainings": 0,
                "jobs": 0,
                "processes": 1,
                "health_listen": "",
            }
        )
        self._processes = [self._spawn(place) for place in range(self._count)]

    def wait(self) -> None:
        """Returns once each listens, or has had its time; from then on those that die are replaced."""
        for process in self._processes:
            await_line(process)
        if self._processes:
            self._thread.start()

    def stop(self) -> None:
        """Has them finish the calls in flight, and waits for their end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()

    def _spawn(self, place: int) -> subprocess.Popen[bytes]:
        host, _, port = self._settings.metrics_listen.rpartition(":")
        # Each counts its own work, so each shows it on a port of its own: those after the first process's.
        metrics = f"{host}:{int(port) + place + 1 if int(port) else 0}" if port else ""
        settings = self._settings.model_copy(update={"metrics_listen": metrics})
        process = subprocess.Popen(
            [sys.executable, "-m", "luthier.replica"],
            # It ends when this is closed, which also the kernel does.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        lines = [settings.model_dump_json()]
        if self._certificates is not None:
            lines.append(self._certificates.shown.to_json())
        assert process.stdin
        # One that has died already is replaced.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("".join(f"{line}\n" for line in lines).encode())
            process.stdin.flush()
        return process

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            for place, process in enumerate(self._processes):
                if process.poll() is not None:
                    log.error("server process ended", process=process.pid, status=process.returncode)
                    self._processes[place] = self._spawn(place)


def await_line(process: subprocess.Popen[bytes]) -> None:
    """Waits until a process has written a line, which says that it listens, or has ended."""
    assert process.stdout
    timer = threading.Timer(READY_S, process.kill)
    timer.start()
    process.stdout.readline()
    timer.cancel()
