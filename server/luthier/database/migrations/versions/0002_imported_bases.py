"""Bases that were imported.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "imported_bases",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("create_time", sa.Double, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
