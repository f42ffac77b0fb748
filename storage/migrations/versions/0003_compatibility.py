"""Which versions may run on the schema: those that do not know its newest revision ask for it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The oldest revision whose code runs on this schema (see storage.migrate).
oldest_code = "0002"


def upgrade() -> None:
    op.create_table(
        "compatibility",
        sa.Column("only", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("oldest_code", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("compatibility")
