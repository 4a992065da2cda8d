"""Tokens, an audit log, and who asked for what.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_OWNED = ("uploads", "dataset_versions", "operations")


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("principal", sa.String, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("role", sa.Integer, nullable=False),
        sa.Column("models", sa.String, nullable=False),
        sa.Column("datasets", sa.String, nullable=False),
        sa.Column("create_time", sa.Double, nullable=False),
        sa.Column("expire_time", sa.Double),
        sa.Column("revoke_time", sa.Double),
        sa.Column("last_use_time", sa.Double),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("time", sa.Double, nullable=False, index=True),
        sa.Column("principal", sa.String, nullable=False),
        sa.Column("method", sa.String, nullable=False),
        sa.Column("resource", sa.String, nullable=False),
        sa.Column("code", sa.String, nullable=False),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("peer", sa.String, nullable=False),
    )
    for table in _OWNED:
        op.add_column(table, sa.Column("principal", sa.String, nullable=False, server_default=""))
        op.create_index(f"{table}_by_principal", table, ["principal"])
    op.add_column("dataset_versions", sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("INSERT INTO revisions (name, value) VALUES ('tokens', 0)")


def downgrade() -> None:
    op.execute("DELETE FROM revisions WHERE name = 'tokens'")
    op.drop_column("dataset_versions", "size_bytes")
    for table in _OWNED:
        op.drop_index(f"{table}_by_principal", table)
        op.drop_column(table, "principal")
    op.drop_table("audit")
    op.drop_table("tokens")
