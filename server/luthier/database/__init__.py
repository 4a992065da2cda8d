"""The database: its tables, and transactions that read or write."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry

HEAD = "0006"
"""The newest migration; a test compares it with the migrations there are."""
_MIGRATION = 0x1A711E5
"""The number of the lock under which PostgreSQL is migrated."""

metadata = sa.MetaData()

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("filename", sa.String, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("create_time", sa.Double, nullable=False),
    # Whose it is; empty where nobody was asked who they are.
    sa.Column("principal", sa.String, nullable=False, server_default=""),
    sa.Index("uploads_by_principal", "principal"),
)

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("task", sa.String, nullable=False),
    # Numbers are given once: this one stays when versions go.
    sa.Column("last_number", sa.Integer, nullable=False),
    sa.Column("create_time", sa.Double, nullable=False),
)

dataset_versions = sa.Table(
    "dataset_versions",
    metadata,
    sa.Column("dataset", sa.String, sa.ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String, nullable=False, index=True),
    # A serialised luthier.v1.DatasetVersion.
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Column("principal", sa.String, nullable=False, server_default=""),
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.UniqueConstraint("dataset", "digest"),
    sa.Index("dataset_versions_by_principal", "principal"),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("last_number", sa.Integer, nullable=False),
    sa.Column("create_time", sa.Double, nullable=False),
)

model_versions = sa.Table(
    "model_versions",
    metadata,
    sa.Column("model", sa.String, sa.ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String, nullable=False, index=True),
    # The operation that published it: an operation publishes once.
    sa.Column("operation", sa.String, nullable=False, unique=True),
    # A serialised luthier.v1.ModelVersion.
    sa.Column("record", sa.LargeBinary, nullable=False),
)

aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("alias", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    # A serialised luthier.v1.Recording; NULL: nothing is kept.
    sa.Column("recording", sa.LargeBinary),
    sa.ForeignKeyConstraint(["model", "number"], ["model_versions.model", "model_versions.number"], ondelete="CASCADE"),
)

evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("model_number", sa.Integer, nullable=False),
    sa.Column("dataset", sa.String, nullable=False),
    sa.Column("dataset_number", sa.Integer, nullable=False),
    sa.Column("create_time", sa.Double, nullable=False, index=True),
    # A serialised luthier.v1.Evaluation.
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(
        ["model", "model_number"], ["model_versions.model", "model_versions.number"], ondelete="CASCADE"
    ),
)

imported_bases = sa.Table(
    "imported_bases",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("create_time", sa.Double, nullable=False),
    # A serialised luthier.v1.Base.
    sa.Column("record", sa.LargeBinary, nullable=False),
)

operations = sa.Table(
    "operations",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    # Numbers of luthier.v1.OperationMetadata.Kind and .State.
    sa.Column("kind", sa.Integer, nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("target", sa.String, nullable=False),
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("request_id", sa.String, unique=True),
    # SHA-256 of what was asked, before defaults were filled in: a retry may come when these have changed.
    sa.Column("fingerprint", sa.String, nullable=False),
    # Each time that a worker takes the operation up is an attempt; only the newest may publish.
    sa.Column("attempt", sa.Integer, nullable=False),
    # How many attempts ended without a word.
    sa.Column("faults", sa.Integer, nullable=False),
    # When another worker may take it up: where it runs, the end of its lease.
    sa.Column("lease_until", sa.Double, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("pause_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("last_sequence", sa.Integer, nullable=False),
    # A serialised luthier.v1.Progress, then Any of the response or google.rpc.Status.
    sa.Column("progress", sa.LargeBinary, nullable=False),
    sa.Column("response", sa.LargeBinary),
    sa.Column("error", sa.LargeBinary),
    sa.Column("create_time", sa.Double, nullable=False),
    sa.Column("update_time", sa.Double, nullable=False),
    sa.Column("principal", sa.String, nullable=False, server_default=""),
    sa.Index("operations_by_state", "state", "create_time"),
    sa.Index("operations_by_principal", "principal"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("operation", sa.String, sa.ForeignKey("operations.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    # A serialised luthier.v1.OperationEvent.
    sa.Column("record", sa.LargeBinary, nullable=False),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("principal", sa.String, nullable=False),
    # SHA-256 of the secret, which nobody keeps.
    sa.Column("digest", sa.LargeBinary, nullable=False),
    # Number of a luthier.v1.Role.
    sa.Column("role", sa.Integer, nullable=False),
    # Patterns, with a space between them.
    sa.Column("models", sa.String, nullable=False),
    sa.Column("datasets", sa.String, nullable=False),
    sa.Column("create_time", sa.Double, nullable=False),
    sa.Column("expire_time", sa.Double),
    # The row stays, for the list.
    sa.Column("revoke_time", sa.Double),
    sa.Column("last_use_time", sa.Double),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("time", sa.Double, nullable=False, index=True),
    sa.Column("principal", sa.String, nullable=False),
    sa.Column("method", sa.String, nullable=False),
    sa.Column("resource", sa.String, nullable=False),
    # Name of a gRPC status, or STARTED.
    sa.Column("code", sa.String, nullable=False),
    sa.Column("request_id", sa.String, nullable=False),
    sa.Column("peer", sa.String, nullable=False),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("model", sa.String, sa.ForeignKey("models.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("alias", sa.String, nullable=False),
    # `model@alias` as long as it lasts: an alias has one at a time.
    sa.Column("holds", sa.String, unique=True),
    # Number of luthier.v1.Rollout.State.
    sa.Column("state", sa.Integer, nullable=False),
    # How many looks at the labels were taken, and what the next one needs.
    sa.Column("looks", sa.Integer, nullable=False),
    sa.Column("next_look", sa.Integer, nullable=False),
    sa.Column("last_sequence", sa.Integer, nullable=False),
    sa.Column("create_time", sa.Double, nullable=False, index=True),
    # A serialised luthier.v1.Rollout without sides.
    sa.Column("record", sa.LargeBinary, nullable=False),
)

rollout_events = sa.Table(
    "rollout_events",
    metadata,
    sa.Column("rollout", sa.String, sa.ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    # A serialised luthier.v1.RolloutEvent.
    sa.Column("record", sa.LargeBinary, nullable=False),
)

rollout_calls = sa.Table(
    "rollout_calls",
    metadata,
    sa.Column("rollout", sa.String, sa.ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True),
    # `models/{model}/versions/{number}`.
    sa.Column("version", sa.String, primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("errors", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
)

predictions = sa.Table(
    "predictions",
    metadata,
    # Of the call; `index` is the instance's place in it. Shadows have rows beside the answer's.
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("index", sa.Integer, primary_key=True),
    # `models/{model}/versions/{number}`.
    sa.Column("version", sa.String, primary_key=True),
    sa.Column("alias", sa.String, nullable=False),
    # The rollout that it was made in; empty: none.
    sa.Column("rollout", sa.String, nullable=False),
    # Stands for the caller's key within the rollout; empty: none was given.
    sa.Column("caller", sa.String, nullable=False),
    sa.Column("create_time", sa.Double, nullable=False, index=True),
    # Serialised messages of the task in google.protobuf.Any.
    sa.Column("instance", sa.LargeBinary),
    sa.Column("prediction", sa.LargeBinary, nullable=False),
    # A serialised luthier.v1.RecordFeedbackRequest with nothing but labels, and the task's primary metric by them.
    sa.Column("labels", sa.LargeBinary),
    sa.Column("value", sa.Double),
    sa.Index("predictions_by_version", "version", "create_time"),
    # Few of many have labels.
    sa.Index(
        "predictions_with_labels",
        "rollout",
        "version",
        "create_time",
        sqlite_where=sa.text("labels IS NOT NULL"),
        postgresql_where=sa.text("labels IS NOT NULL"),
    ),
)

drift_windows = sa.Table(
    "drift_windows",
    metadata,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    # Windows end at whole intervals: of several servers the first to insert one looks at it.
    sa.Column("end_time", sa.Double, primary_key=True),
    # Number of luthier.v1.Drift.Verdict; 0 until it has been looked at.
    sa.Column("verdict", sa.Integer, nullable=False),
    # A serialised luthier.v1.Drift.
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["model", "number"], ["model_versions.model", "model_versions.number"], ondelete="CASCADE"),
)

revisions = sa.Table(
    "revisions",
    metadata,
    # `models`, `operations` or `tokens`: what changed.
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)


class NewerDatabase(Exception):
    """The database was migrated by a newer release, which this one cannot read."""


class Database:
    """Transactions on SQLite or PostgreSQL."""

    def __init__(self, url: str) -> None:
        connect_args: dict[str, Any] = {}
        if url.startswith("sqlite"):
            # The driver must not begin transactions by itself: `_begin` decides between read and write.
            connect_args = {"timeout": 30.0, "isolation_level": None, "check_same_thread": False}
        self.engine = sa.create_engine(url, connect_args=connect_args, pool_pre_ping=not connect_args)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _configure_sqlite)
            sa.event.listen(self.engine, "begin", _begin)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that writes; on SQLite it takes the write lock at once, since a reader cannot be promoted."""
        with self.engine.connect().execution_options(write=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """A transaction that only reads, and sees all tables as they are at one moment."""
        level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self.engine.connect().execution_options(**level) as connection, connection.begin():
            yield connection

    def migrate(self, revision: str = HEAD) -> None:
        """Brings the schema to a revision; raises NewerDatabase where it is past all that this release knows.

        Alembic costs 0.2 s to import, so it is asked only where there is work.
        """
        with self.engine.connect() as connection:
            if sa.inspect(connection).has_table("alembic_version"):
                current = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
                if current == revision:
                    return
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                # Servers that start at once migrate one after the other; SQLite's write lock does the same.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION)))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, revision)
            except CommandError as error:
                raise NewerDatabase(f"the database is of a newer release: {error}") from error

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def bump(connection: sa.Connection, name: str) -> None:
    """Tells every process that something called `name` changed, at the end of this transaction."""
    connection.execute(revisions.update().where(revisions.c.name == name).values(value=revisions.c.value + 1))


def insert_or_skip(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    """Inserts a row, or does not where one with its keys is there; returns whether it did.

    Where another open transaction has inserted one, it waits for that one's end: a plain insertion would then fail.
    """
    from sqlalchemy.dialects import postgresql, sqlite

    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    insert = dialect.insert(table).values(row).on_conflict_do_nothing().returning(sa.literal(1))
    return connection.execute(insert).first() is not None


def now() -> float:
    """Seconds since 1970, as the tables keep times."""
    return time.time()


def _configure_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    # Builds before these can corrupt a database in WAL mode when a reset races a checkpoint; see docs/operations.md.
    version = sqlite3.sqlite_version_info
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    cursor.execute(f"PRAGMA journal_mode={'WAL' if fixed else 'TRUNCATE'}")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
