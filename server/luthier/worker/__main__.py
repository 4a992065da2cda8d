"""A worker: a fresh process that does one attempt at one operation. It never imports a training framework."""

from __future__ import annotations

import os
import sys

import sqlalchemy as sa
import structlog

from luthier import logs, plugins
from luthier.bases import Catalogue
from luthier.database import Database
from luthier.errors import StoreUnavailable
from luthier.operations import Claim, LeaseLost, Operations
from luthier.registry import Registry
from luthier.settings import Settings
from luthier.store import Store
from luthier.v1.operation_pb2 import OperationMetadata
from luthier.worker import batch_predict, create_dataset, evaluate, feedback, fine_tune, import_base, process, pull_base
from luthier.worker.child import ChildKilled
from luthier.worker.job import Job, Paused, Tools

log = structlog.get_logger()

WORK = {
    OperationMetadata.KIND_CREATE_DATASET: create_dataset.work,
    OperationMetadata.KIND_FINE_TUNE: fine_tune.work,
    OperationMetadata.KIND_EVALUATE: evaluate.work,
    OperationMetadata.KIND_PULL_BASE: pull_base.work,
    OperationMetadata.KIND_IMPORT_BASE: import_base.work,
    OperationMetadata.KIND_BATCH_PREDICT: batch_predict.work,
    OperationMetadata.KIND_FINE_TUNE_FROM_FEEDBACK: feedback.work,
}


def main(operation: str, attempt: str, kind: str, parent: str) -> int:
    """Does the work and ends the operation. Exit status 0 means that it has ended, well or not.

    The settings come by standard input: they hold passwords, and anybody may read a process's arguments.
    """
    process.die_with_parent(int(parent))
    # Whoever predicts comes first.
    os.nice(5)
    logs.configure(operation=operation)
    settings = Settings.model_validate_json(sys.stdin.buffer.read())
    database = Database(settings.database)
    operations = Operations(database)
    claim = Claim(operation, int(attempt), OperationMetadata.Kind.Value(kind))
    tools = Tools(
        settings=settings,
        database=database,
        operations=operations,
        registry=Registry(database),
        store=Store(settings.home, settings.artefacts),
        plugins=plugins.load(),
        catalogue=Catalogue.load(settings.home / "bases.toml", database),
    )
    job = Job(tools, claim)
    try:
        publish = WORK[claim.kind](job)
        job.finish()
        with database.write() as connection:
            operations.check(connection, claim)
            operations.succeed(connection, claim, publish(connection))
    except LeaseLost as error:
        log.warning("result refused", operation=operation, attempt=claim.attempt, why=error.message)
        return 1
    except Paused:
        job.finish()
        operations.hold(claim)
    except StoreUnavailable as error:
        job.finish()
        operations.postpone(claim, error.message)
    except ChildKilled as error:
        job.finish()
        log.warning("to be taken up again", operation=operation, attempt=claim.attempt, why=str(error))
        return 1
    except sa.exc.OperationalError as error:
        log.warning("to be taken up again", operation=operation, attempt=claim.attempt, why=type(error.orig).__name__)
        return 1
    except Exception as error:  # Whatever happened, the operation must end with a reason.
        job.finish()
        operations.fail(claim, process.status_of(error, kind))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
