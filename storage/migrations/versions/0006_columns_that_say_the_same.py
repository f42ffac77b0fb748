"""The third function of the group commit: what is the same in each row comes once."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# The oldest revision whose code runs on this schema (see storage.migrate).
oldest_code = "0002"

FUNCTION = Path(__file__).parent.parent / "functions" / "commit_group_3.sql"


def upgrade() -> None:
    # The second function stays: servers that run the version before this one call it until they are gone.
    if op.get_bind().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(FUNCTION.read_text().replace("%", "%%"))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION commit_group_3")
