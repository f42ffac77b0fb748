"""Messages that stream, runs, the age of events, and the second function of the group commit."""

from __future__ import annotations

import json
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
    _take_up_what_streams()

    # The first function stays: servers that run the version before this one call it until they are gone.
    if op.get_bind().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(FUNCTION.read_text().replace("%", "%%"))


def _take_up_what_streams() -> None:
    """Messages stream already where the schema was taken down and comes up again; else nobody would ever end them."""
    connection = op.get_bind()
    of_it = "FROM events e WHERE e.message_id = m.id"
    connection.exec_driver_sql(
        "INSERT INTO streaming_messages (conversation_id, message_id, tenant, created_seq, last_seq, length)"  # noqa: S608
        f" SELECT m.conversation_id, m.id, m.tenant, coalesce((SELECT min(e.seq) {of_it}), m.last_seq),"
        f" coalesce((SELECT max(e.seq) {of_it}), m.last_seq), 0 FROM messages m WHERE m.status = 'streaming'"
    )
    deltas = connection.exec_driver_sql(
        "SELECT s.message_id, e.payload FROM streaming_messages s JOIN events e ON e.message_id = s.message_id"
        " WHERE e.kind = 'message.delta'"
    )
    lengths: dict[str, int] = {}
    for message_id, payload in deltas:
        units = len(json.loads(payload)["text"].encode("utf-16-le")) // 2
        lengths[message_id] = lengths.get(message_id, 0) + units
    streaming = sa.table("streaming_messages", sa.column("message_id", ID), sa.column("length"))
    for message_id, length in lengths.items():
        op.execute(streaming.update().where(streaming.c.message_id == str(message_id)).values(length=length))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION commit_group_2")
    op.drop_column("events", "at")
    op.drop_index("ix_messages_conversation_id_last_seq", "messages")
    op.drop_table("runs")
    op.drop_table("streaming_messages")
