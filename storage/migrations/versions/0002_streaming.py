"""Messages that stream, runs, the age of events, and the second function of the group commit."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

FUNCTION = Path(__file__).parent.parent / "functions" / "commit_group_2.sql"

ID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
TIME = sa.String(27).with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "streaming_messages",
        sa.Column("conversation_id", ID, primary_key=True),
        sa.Column("message_id", ID, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("created_seq", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("length", sa.BigInteger, nullable=False),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "runs",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("id", ID, primary_key=True),
        sa.Column("conversation_id", ID, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("message_id", ID),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("ended_at", TIME),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_runs_conversation_id_last_seq", "runs", ["conversation_id", "last_seq"])
    op.create_index("ix_messages_conversation_id_last_seq", "messages", ["conversation_id", "last_seq"])
    op.add_column("events", sa.Column("at", TIME))

    # The first function stays: servers that run the version before this one call it until they are gone.
    if op.get_bind().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(FUNCTION.read_text().replace("%", "%%"))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION commit_group_2")
    op.drop_column("events", "at")
    op.drop_index("ix_messages_conversation_id_last_seq", "messages")
    op.drop_table("runs")
    op.drop_table("streaming_messages")
