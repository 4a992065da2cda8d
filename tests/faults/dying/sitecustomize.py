"""Kills the first worker of each fine-tune at one step of publishing: at a sync, a renaming, or beside a commit.

Python imports this by itself where the folder is on its path. Steps are counted from the first sync of the main thread;
the file that LUTHIER_DIE_AT names holds the number of the step to die at. Without that variable nobody dies, but the
database declines the first commit instead.
"""

import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path

sync = os.fsync
steps = 0


def step() -> None:
    global steps
    if threading.current_thread() is not threading.main_thread():
        return
    steps += 1
    if "LUTHIER_DIE_AT" in os.environ and steps == int(Path(os.environ["LUTHIER_DIE_AT"]).read_text(encoding="utf-8")):
        os.kill(os.getpid(), signal.SIGKILL)


def syncing(descriptor: int) -> None:
    step()
    sync(descriptor)


def renaming(event: str, _: object) -> None:
    if event == "os.rename" and steps:
        step()


def watch_commits() -> None:
    from sqlalchemy.engine.default import DefaultDialect

    commit = DefaultDialect.do_commit

    def committing(self: object, connection: object) -> None:
        if steps and "LUTHIER_DIE_AT" not in os.environ:
            raise sqlite3.OperationalError("disk I/O error")
        if steps:
            step()
        commit(self, connection)  # type: ignore[arg-type]
        if steps:
            step()

    DefaultDialect.do_commit = committing  # type: ignore[method-assign, assignment]


if "luthier.worker" in sys.orig_argv:
    _, attempt, kind, _ = sys.orig_argv[sys.orig_argv.index("luthier.worker") + 1 :]
    if attempt == "1" and kind == "KIND_FINE_TUNE":
        os.fsync = syncing
        sys.addaudithook(renaming)
        watch_commits()
