"""Appends with a commit for each request: aiohttp, asyncpg and msgspec. It writes Swarm's own tables.

One statement does it all: it locks and advances the conversation's row, and stores the message and its event. So it is one
round trip, and the lock is held as shortly as can be.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
from aiohttp import web
from msgspec import Struct
from uuid_utils import uuid7

from bench.peers.arguments import parse

_POOL = web.AppKey("pool", asyncpg.Pool)

_APPEND = """
WITH conversation AS (
    UPDATE conversations
    SET last_seq = last_seq + 1, message_count = message_count + 1,
        last_activity_at = CASE WHEN last_activity_at < $6::timestamptz - interval '1 second' THEN $6 ELSE last_activity_at END
    WHERE id = $2 AND tenant = $1 AND deleted_at IS NULL
    RETURNING last_seq, message_count
), message AS (
    INSERT INTO messages (tenant, id, conversation_id, position, role, content, status, tool_calls, metadata, length,
                          sha256, created_at, updated_at, last_seq)
    SELECT $1, $3, $2, message_count, $4, $5::text, 'complete', '[]', $7, length($5::text), $8, $6, $6, last_seq FROM conversation
), event AS (
    INSERT INTO events (conversation_id, seq, tenant, kind, message_id, payload, at)
    SELECT $2, last_seq, $1, 'message.created', $3, replace($9::text, chr(2), message_count::text), $6 FROM conversation
)
SELECT last_seq, message_count FROM conversation
"""


class Posted(Struct):
    role: str
    content: str
    metadata: dict[str, Any] = {}


class Message(Struct):
    id: str
    conversation_id: str
    position: msgspec.Raw
    role: str
    content: str
    status: str
    tool_calls: list[Any]
    metadata: dict[str, Any]
    length: int
    sha256: str
    created_at: datetime
    updated_at: datetime


_decode = msgspec.json.Decoder(Posted).decode
_encode = msgspec.json.Encoder().encode
_OPEN = msgspec.Raw(b"\x02")  # the position, which the database gives


async def append(request: web.Request) -> web.Response:
    conversation_id = request.match_info["id"]
    posted = _decode(await request.read())
    now, digest = datetime.now(UTC), hashlib.sha256(posted.content.encode()).hexdigest()
    message_id = str(uuid7())
    message = _encode(
        Message(
            message_id,
            conversation_id,
            _OPEN,
            posted.role,
            posted.content,
            "complete",
            [],
            posted.metadata,
            len(posted.content),
            digest,
            now,
            now,
        )
    )
    async with request.app[_POOL].acquire() as connection:
        row = await connection.fetchrow(
            _APPEND,
            "default",
            conversation_id,
            message_id,
            posted.role,
            posted.content,
            now,
            _encode(posted.metadata).decode(),
            digest,
            (b'{"message":%b}' % message).decode(),
        )
    if row is None:
        raise web.HTTPNotFound
    body = message.replace(b"\x02", b"%d" % row[1])
    return web.Response(
        status=201, body=body, content_type="application/json", headers={"Location": f"/messages/{message_id}"}
    )


async def health(request: web.Request) -> web.Response:
    return web.Response()


async def _prepare(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    await connection.set_type_codec("uuid", encoder=str, decoder=str, schema="pg_catalog", format="text")


def main() -> None:
    arguments = parse(__doc__)

    async def pool(app: web.Application) -> AsyncIterator[None]:
        async with asyncpg.create_pool(
            arguments.database_url, min_size=1, max_size=arguments.pool, init=_prepare
        ) as made:
            app[_POOL] = made
            yield

    app = web.Application()
    app.cleanup_ctx.append(pool)
    app.router.add_post("/conversations/{id}/messages", append)
    app.router.add_get("/health", health)
    web.run_app(app, host="127.0.0.1", port=arguments.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
