"""Rollouts, and predictions kept for feedback.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("aliases", sa.Column("recording", sa.LargeBinary))
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("model", sa.String, sa.ForeignKey("models.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("alias", sa.String, nullable=False),
        sa.Column("holds", sa.String, unique=True),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("looks", sa.Integer, nullable=False),
        sa.Column("next_look", sa.Integer, nullable=False),
        sa.Column("last_sequence", sa.Integer, nullable=False),
        sa.Column("create_time", sa.Double, nullable=False, index=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "rollout_events",
        sa.Column("rollout", sa.String, sa.ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "rollout_calls",
        sa.Column("rollout", sa.String, sa.ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("version", sa.String, primary_key=True),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
    )
    op.create_table(
        "predictions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("index", sa.Integer, primary_key=True),
        sa.Column("version", sa.String, primary_key=True),
        sa.Column("alias", sa.String, nullable=False),
        sa.Column("rollout", sa.String, nullable=False),
        sa.Column("caller", sa.String, nullable=False),
        sa.Column("create_time", sa.Double, nullable=False, index=True),
        sa.Column("instance", sa.LargeBinary),
        sa.Column("prediction", sa.LargeBinary, nullable=False),
        sa.Column("labels", sa.LargeBinary),
        sa.Column("value", sa.Double),
    )
    op.create_index("predictions_by_version", "predictions", ["version", "create_time"])
    op.create_index(
        "predictions_with_labels",
        "predictions",
        ["rollout", "version", "create_time"],
        sqlite_where=sa.text("labels IS NOT NULL"),
        postgresql_where=sa.text("labels IS NOT NULL"),
    )


def downgrade() -> None:
    for table in ("predictions", "rollout_calls", "rollout_events", "rollouts"):
        op.drop_table(table)
    op.drop_column("aliases", "recording")
