"""The group commit reads its arrays in step: the same function, a tenth faster with many messages."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The oldest revision whose code runs on this schema (see storage.migrate).
oldest_code = "0002"

FUNCTION = Path(__file__).parent.parent / "functions" / "commit_group_2.sql"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # What it takes and gives is the same: whoever calls it notices nothing.
        statement = FUNCTION.read_text().replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))


def downgrade() -> None:
    """What is there serves older code as well."""
