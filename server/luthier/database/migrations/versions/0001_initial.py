"""The first tables.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("filename", sa.String, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("create_time", sa.Double, nullable=False),
    )
    for name in ("datasets", "models"):
        op.create_table(
            name,
            sa.Column("id", sa.String, primary_key=True),
            sa.Column("task", sa.String, nullable=False),
            sa.Column("last_number", sa.Integer, nullable=False),
            sa.Column("create_time", sa.Double, nullable=False),
        )
    op.create_table(
        "dataset_versions",
        sa.Column("dataset", sa.String, sa.ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String, nullable=False, index=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("dataset", "digest"),
    )
    op.create_table(
        "model_versions",
        sa.Column("model", sa.String, sa.ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String, nullable=False, index=True),
        sa.Column("operation", sa.String, nullable=False, unique=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    version = ["model_versions.model", "model_versions.number"]
    op.create_table(
        "aliases",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("alias", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["model", "number"], version, ondelete="CASCADE"),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("model_number", sa.Integer, nullable=False),
        sa.Column("dataset", sa.String, nullable=False),
        sa.Column("dataset_number", sa.Integer, nullable=False),
        sa.Column("create_time", sa.Double, nullable=False, index=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["model", "model_number"], version, ondelete="CASCADE"),
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("kind", sa.Integer, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("target", sa.String, nullable=False),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("request_id", sa.String, unique=True),
        sa.Column("fingerprint", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("faults", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("last_sequence", sa.Integer, nullable=False),
        sa.Column("progress", sa.LargeBinary, nullable=False),
        sa.Column("response", sa.LargeBinary),
        sa.Column("error", sa.LargeBinary),
        sa.Column("create_time", sa.Double, nullable=False),
        sa.Column("update_time", sa.Double, nullable=False),
    )
    op.create_index("operations_by_state", "operations", ["state", "create_time"])
    op.create_table(
        "events",
        sa.Column("operation", sa.String, sa.ForeignKey("operations.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    revisions = op.create_table(
        "revisions", sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.BigInteger, nullable=False)
    )
    op.bulk_insert(revisions, [{"name": "models", "value": 1}, {"name": "operations", "value": 1}])
