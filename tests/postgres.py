"""A PostgreSQL server of the tests' own, from the programs of Debian's package."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER = "postgres"
"""The server refuses to run as root; the package makes this account."""


@dataclass(frozen=True)
class Cluster:
    """A running server that listens on a socket in its folder, and on no port."""

    programs: Path
    directory: Path

    def run(self, program: str, *arguments: str) -> None:
        """Runs one of PostgreSQL's programs to its end, as its own user where this process is root."""
        as_user = {"user": USER, "group": USER, "extra_groups": []} if os.getuid() == 0 else {}
        command = [str(self.programs / program), *arguments]
        subprocess.run(command, check=True, cwd=self.directory, stdout=subprocess.DEVNULL, **as_user)  # type: ignore[call-overload]

    def control(self, *arguments: str) -> None:
        """Starts, stops or restarts the server."""
        settings = f"-c listen_addresses= -c unix_socket_directories={self.directory} -c fsync=off"
        log = str(self.directory / "log")
        self.run("pg_ctl", "-D", str(self.directory / "data"), "-l", log, "-o", settings, "-w", *arguments)

    def restart(self) -> None:
        """Ends the server without a word to its clients, and starts it again."""
        self.control("restart", "-m", "immediate")

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
        server.control("start")
        yield server
        server.control("stop", "-m", "immediate")
    finally:
        shutil.rmtree(directory)
