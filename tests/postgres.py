"""A PostgreSQL server of the tests' own, from the programs of Debian's package."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "postgres"
"""The account that the package makes."""


class Cluster:
    """A server that listens on a socket in its folder, and on no port."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.programs = programs
        self.directory = directory
        # The server refuses to run as root. Not by Popen's `user`: for that Python forks beside gRPC's threads.
        to_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        self._as_user = to_user if os.getuid() == 0 else []
        self._server: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *arguments: str) -> None:
        """Runs one of PostgreSQL's programs to its end."""
        command = [*self._as_user, str(self.programs / program), *arguments]
        subprocess.run(command, check=True, cwd=self.directory, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        """Starts the server and waits until it takes connections."""
        data, here = str(self.directory / "data"), str(self.directory)
        command = [*self._as_user, str(self.programs / "postgres"), "-D", data, "-k", here, "-h", "", "-F"]
        with (self.directory / "log").open("ab") as log:
            self._server = subprocess.Popen(command, cwd=self.directory, stderr=log)
        deadline = time.monotonic() + 30
        while subprocess.run([self.programs / "pg_isready", "-q", "-h", here, "-U", USER]).returncode:
            assert time.monotonic() < deadline, (self.directory / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the server at once, without a word to its clients."""
        assert self._server is not None
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(30)

    def restart(self) -> None:
        """Ends the server at once, and starts it again: it recovers as after a loss of power."""
        self.stop()
        self.start()

    def new_database(self) -> str:
        """Makes an empty database; returns its SQLAlchemy URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.run("createdb", "-h", str(self.directory), "-U", USER, name)
        return f"postgresql+psycopg://{USER}@/{name}?host={self.directory}"


def programs() -> Path | None:
    """The folder of the newest PostgreSQL that is installed."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    return max(found, key=lambda path: int(path.parent.name), default=None)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Starts a new server by the programs of a folder, and ends it."""
    # Folders of pytest can be entered by their owner alone, and a path to a socket may have 100 characters.
    directory = Path(tempfile.mkdtemp(prefix="luthier-postgres-"))
    if os.getuid() == 0:
        account = pwd.getpwnam(USER)
        os.chown(directory, account.pw_uid, account.pw_gid)
    server = Cluster(folder, directory)
    server.run("initdb", "-D", str(directory / "data"), "-U", USER, "-A", "trust", "--no-sync")
    try:
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(directory)
