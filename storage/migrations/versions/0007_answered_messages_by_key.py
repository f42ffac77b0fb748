"""The group commit looks up a message that is answered by its key, however small the table was when it was planned."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# The oldest revision whose code runs on this schema (see storage.migrate).
oldest_code = "0002"

FUNCTION = Path(__file__).parent.parent / "functions" / "commit_group_3.sql"


def upgrade() -> None:
    # The same function by the same rules, so it keeps its name.
    if op.get_bind().dialect.name == "postgresql":
        replaced = FUNCTION.read_text().replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
        op.get_bind().exec_driver_sql(replaced.replace("%", "%%"))


def downgrade() -> None:
    """The function serves the version before as well."""
