"""The tables that an application of the usual make would have, which the two ORM peers read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg

DDL = """
CREATE TABLE peer_conversations (
    id uuid PRIMARY KEY,
    title text,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE TABLE peer_messages (
    id uuid PRIMARY KEY,
    conversation_id uuid NOT NULL REFERENCES peer_conversations,
    position bigint NOT NULL,
    role text NOT NULL,
    agent_id text,
    content text NOT NULL,
    status text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX peer_messages_by_position ON peer_messages (conversation_id, position);
"""

_CONTENT = "x" * 300
_COLUMNS = (
    "id",
    "conversation_id",
    "position",
    "role",
    "agent_id",
    "content",
    "status",
    "metadata",
    "created_at",
    "updated_at",
)


async def fill(connection: asyncpg.Connection[Any], conversation_id: str, count: int) -> None:
    """A new conversation with messages at the positions 1 to `count`."""
    conversation = UUID(conversation_id)
    now = datetime.now(UTC)
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO peer_conversations (id, title, created_at, updated_at) VALUES ($1, 'bench', $2, $2)",
            conversation,
            now,
        )
        await connection.copy_records_to_table(
            "peer_messages", records=_rows(conversation, now, count), columns=_COLUMNS
        )


async def vacuum(connection: asyncpg.Connection[Any]) -> None:
    """What autovacuum would have done by the time anyone looks."""
    await connection.execute("VACUUM ANALYZE peer_conversations, peer_messages")


def _rows(conversation: UUID, now: datetime, count: int) -> Iterator[tuple[Any, ...]]:
    for position in range(1, count + 1):
        at = now - timedelta(seconds=count - position)
        yield uuid4(), conversation, position, "user", None, _CONTENT, "complete", "{}", at, at
