"""What was found in windows of live predictions.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "drift_windows",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("end_time", sa.Double, primary_key=True),
        sa.Column("verdict", sa.Integer, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "number"], ["model_versions.model", "model_versions.number"], ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("drift_windows")
