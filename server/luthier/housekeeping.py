"""What a server does away with by and by: old operations and predictions, unused uploads, files that nothing names."""

from __future__ import annotations

import threading
import time

import sqlalchemy as sa
import structlog

from luthier.access.audit import Audit
from luthier.errors import StoreUnavailable
from luthier.journal import Journal
from luthier.operations import Operations
from luthier.registry import Registry
from luthier.store import Store

log = structlog.get_logger()

EVERY_S = 3600.0
UPLOADS_KEPT_S = 24 * 3600.0
"""Seconds after which an upload is forgotten."""
SPARED_S = 24 * 3600.0
"""Files younger than so many seconds stay: what is named by nothing may be about to be."""
DAY_S = 24 * 3600.0


class Housekeeping:
    """Keeps house once after the start and then every hour, on a thread of its own. Several servers may, at once."""

    def __init__(
        self,
        registry: Registry,
        operations: Operations,
        store: Store,
        audit: Audit,
        journal: Journal,
        *,
        keep_operations_days: float,
        keep_audit_days: float = 0.0,
        keep_predictions_days: float = 0.0,
        most_predictions: int = 0,
    ) -> None:
        """Operations are kept for some days after their end, entries of the audit log and predictions after they were
        made, and no more than `most_predictions` of these; 0: for good, and without a limit."""
        self._audit = audit
        self._keep_audit_s = keep_audit_days * DAY_S
        self._registry = registry
        self._operations = operations
        self._store = store
        self._journal = journal
        self._keep_s = keep_operations_days * DAY_S
        self._keep_predictions_s = keep_predictions_days * DAY_S
        self._most_predictions = most_predictions
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, once what it is about to remove is removed."""
        self._stop.set()
        self._thread.join()

    def keep(self, now: float) -> None:
        """Does everything once, as of a time in seconds since 1970."""
        if self._keep_s and (forgotten := self._operations.forget(now - self._keep_s)):
            log.info("operations forgotten", count=forgotten)
        if self._keep_audit_s and (forgotten := self._audit.forget(now - self._keep_audit_s)):
            log.info("audit entries forgotten", count=forgotten)
        before = now - self._keep_predictions_s if self._keep_predictions_s else 0.0
        if forgotten := self._journal.forget(before, self._most_predictions):
            log.info("predictions forgotten", count=forgotten)
        self._registry.forget_uploads(now - UPLOADS_KEPT_S)
        found = self._store.artefacts()
        # Asked after the files were listed: whatever was published since is not among them.
        named = self._registry.artefacts()
        for path in found:
            if path.name not in named[path.parent.name] and self._store.discard(path, now - SPARED_S):
                log.info("file removed that nothing names", path=f"{path.parent.name}/{path.name}")

    def _run(self) -> None:
        while True:
            try:
                self.keep(time.time())
            except sa.exc.OperationalError as error:
                log.warning("database unreachable", error=type(error.orig).__name__)
            except (OSError, StoreUnavailable) as error:
                log.warning("housekeeping left something", error=str(error))
            if self._stop.wait(EVERY_S):
                return
