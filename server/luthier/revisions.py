"""How a process learns of changes that any process made: one look at one small table, many times a second."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import sqlalchemy as sa
import structlog

from luthier import database as db
from luthier.errors import StoreUnavailable

log = structlog.get_logger()


class Revisions:
    """Polls the revisions of `models`, `operations` and `tokens` on a thread of its own and tells those who wait."""

    def __init__(
        self,
        database: db.Database,
        poll_s: float,
        on_models: Callable[[], None],
        others: Mapping[str, Callable[[], None]] | None = None,
    ) -> None:
        """`others` are called when the revision of their name changes; they read the database and nothing else."""
        self._others = others or {}
        self._database = database
        self._poll_s = poll_s
        self._on_models = on_models
        self._changed = threading.Condition()
        self._seen: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="revisions", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and wakes all who wait."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    @property
    def stopped(self) -> bool:
        """Whether the process is about to end."""
        return self._stop.is_set()

    def operations(self) -> int:
        """The revision of operations seen last. Read it before reading events, then wait for another."""
        return self._seen.get("operations", 0)

    def wait(self, seen: int, timeout: float) -> None:
        """Returns once the revision of operations is no longer `seen`, at the end, or after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.operations() != seen or self.stopped, timeout)

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                with self._database.read() as connection:
                    rows = connection.execute(sa.select(db.revisions)).all()
                fresh = {row.name: row.value for row in rows}
                for name, on_change in self._others.items():
                    if fresh[name] != self._seen.get(name):
                        on_change()
                if fresh["models"] != self._seen.get("models"):
                    # Before those who wait hear that a fine-tune has ended: next they predict with its model.
                    fresh["models"] = self._models_at(fresh["models"])
            except sa.exc.OperationalError as error:
                # The database is away for a moment: what is loaded goes on being served.
                log.warning("database unreachable", error=type(error.orig).__name__)
                continue
            with self._changed:
                self._seen = fresh
                self._changed.notify_all()

    def _models_at(self, revision: int) -> int:
        """Has the models of a revision loaded; returns it, or an earlier one where that is to be tried again."""
        try:
            self._on_models()
        except StoreUnavailable as error:
            log.warning("artefacts unreachable", why=error.message)
            return self._seen.get("models", -1)
        return revision
