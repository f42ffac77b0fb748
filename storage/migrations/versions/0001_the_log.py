"""Conversations, messages, the log of events, agents, idempotency keys, and the function of the group commit."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from storage.timeline import random_epoch

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

FUNCTION = Path(__file__).parent.parent / "functions" / "commit_group_1.sql"

ID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
TIME = sa.String(27).with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    timeline = op.create_table(
        "timeline",
        sa.Column("only", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.Text, nullable=False),
    )
    op.bulk_insert(timeline, [{"only": 1, "epoch": random_epoch()}])

    op.create_table(
        "conversations",
        sa.Column("id", ID, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("title", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("message_count", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("floor_seq", sa.BigInteger, nullable=False),
        sa.Column("state_seq", sa.BigInteger, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("last_activity_at", TIME, nullable=False),
        sa.Column("deleted_at", TIME),
        postgresql_with={"fillfactor": 60},
    )
    live = sa.text("deleted_at IS NULL")
    op.create_index(
        "ix_conversations_by_activity",
        "conversations",
        ["tenant", "last_activity_at", "id"],
        postgresql_where=live,
        sqlite_where=live,
    )
    deleted = sa.text("deleted_at IS NOT NULL")
    op.create_index(
        "ix_conversations_deleted_at",
        "conversations",
        ["deleted_at"],
        postgresql_where=deleted,
        sqlite_where=deleted,
    )

    op.create_table(
        "messages",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("id", ID, primary_key=True),
        sa.Column("conversation_id", ID, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text),
        sa.Column("run_id", ID),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reply_to", ID),
        sa.Column("model", sa.Text),
        sa.Column("tool_calls", sa.Text, nullable=False),
        sa.Column("usage", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("length", sa.BigInteger),
        sa.Column("sha256", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("conversation_id", "position"),
    )

    op.create_table(
        "events",
        sa.Column("conversation_id", ID, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("message_id", ID),
        sa.Column("payload", sa.Text, nullable=False),
    )
    of_a_message = sa.text("message_id IS NOT NULL")
    op.create_index(
        "ix_events_message_id",
        "events",
        ["message_id"],
        postgresql_where=of_a_message,
        sqlite_where=of_a_message,
    )

    op.create_table(
        "agents",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("hidden", sa.Boolean, nullable=False),
        sa.Column("document", sa.Text, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("updated_at", TIME, nullable=False),
    )

    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("principal", sa.Text, primary_key=True),
        sa.Column("route", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("lines", sa.BigInteger),
        sa.Column("running_hash", sa.Text),
        sa.Column("last_position", sa.BigInteger),
        sa.Column("created_at", TIME, nullable=False),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])

    if op.get_bind().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(FUNCTION.read_text().replace("%", "%%"))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION commit_group_1")
    for table in ("idempotency_keys", "agents", "events", "messages", "conversations", "timeline"):
        op.drop_table(table)
