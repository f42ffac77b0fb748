"""The tables of the peers that have some of their own: messages of conversations, as one would draw them up at first."""

from __future__ import annotations

import asyncpg

DDL = """
CREATE TABLE peer_conversations (
    id uuid PRIMARY KEY,
    title text,
    metadata jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE TABLE peer_messages (
    id uuid PRIMARY KEY,
    conversation_id uuid NOT NULL REFERENCES peer_conversations (id),
    position bigint NOT NULL,
    role text NOT NULL,
    agent_id text,
    content text NOT NULL,
    status text NOT NULL,
    metadata jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (conversation_id, position)
);
"""

_FILL = """
INSERT INTO peer_messages
SELECT gen_random_uuid(), $1, n, 'user', NULL, repeat('x', 300), 'complete', '{}', now(), now()
FROM generate_series(1, $2::bigint) AS n
"""


async def fill(url: str, conversation_id: str, count: int) -> None:
    """Makes the tables and one conversation of `count` messages of 300 characters."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(DDL)
        await connection.execute(
            "INSERT INTO peer_conversations VALUES ($1, 'bench', '{}', now(), now())", conversation_id
        )
        await connection.execute(_FILL, conversation_id, count)
        await connection.execute("VACUUM ANALYZE peer_messages")
    finally:
        await connection.close()
