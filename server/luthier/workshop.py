"""A process that takes up operations and serves nothing: the workers of a server, on this machine or another."""

from __future__ import annotations

import structlog

from luthier.database import Database
from luthier.operations import Operations
from luthier.settings import Settings
from luthier.signals import ending
from luthier.store import Store
from luthier.supervisor import Supervisor

log = structlog.get_logger()


def run(settings: Settings) -> int:
    """Takes up operations until SIGTERM or SIGINT, gives back those that have not ended, and returns 0."""
    ended = ending()
    store = Store(settings.home, settings.artefacts)
    store.check()
    database = Database(settings.database)
    database.migrate()
    supervisor = Supervisor(settings, Operations(database), store)
    supervisor.start()
    print(f"taking up operations of {settings.home}", flush=True)
    ended.get()
    log.info("stopping")
    supervisor.stop()
    database.close()
    return 0
