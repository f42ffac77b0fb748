"""Windows by hand: aiohttp, asyncpg and msgspec, nothing between them. It reads Swarm's own tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

import asyncpg
import msgspec
from aiohttp import web
from msgspec import Raw, Struct

from bench.peers.arguments import parse

_POOL = web.AppKey("pool", asyncpg.Pool)

_WINDOW = """
SELECT m.id, m.conversation_id, m.position, m.role, m.agent_id, m.run_id, m.content, m.status, m.reply_to, m.model,
       m.tool_calls, m.usage, m.metadata, m.length, m.sha256, m.created_at, m.updated_at, c.message_count, c.last_seq
FROM conversations c JOIN messages m ON m.conversation_id = c.id AND m.position >= $3 AND m.position < $3 + $4
WHERE c.id = $2 AND c.tenant = $1 AND c.deleted_at IS NULL
ORDER BY m.position
"""
_NEWEST = _WINDOW.replace(
    "m.position >= $3 AND m.position < $3 + $4", "m.position > c.message_count - $3 AND m.position <= c.message_count"
)


class Message(Struct):
    id: str
    conversation_id: str
    position: int
    role: str
    agent_id: str | None
    run_id: str | None
    content: str
    status: str
    reply_to: str | None
    model: str | None
    tool_calls: Raw
    usage: Raw | None
    metadata: Raw
    length: int
    sha256: str
    created_at: datetime
    updated_at: datetime


class Window(Struct):
    items: list[Message]
    total: int
    as_of: int


_encode = msgspec.json.Encoder().encode


async def messages(request: web.Request) -> web.Response:
    conversation_id = request.match_info["id"]
    limit, first = int(request.query.get("limit", 50)), request.query.get("from")
    async with request.app[_POOL].acquire() as connection:
        if first is None:
            rows = await connection.fetch(_NEWEST, "default", conversation_id, limit)
        else:
            rows = await connection.fetch(_WINDOW, "default", conversation_id, int(first), limit)
    if not rows:
        raise web.HTTPNotFound
    items = [
        Message(*row[:10], Raw(row[10].encode()), row[11] and Raw(row[11].encode()), Raw(row[12].encode()), *row[13:17])
        for row in (tuple(row) for row in rows)
    ]
    body = _encode(Window(items, rows[0][17], rows[0][18]))
    return web.Response(body=body, content_type="application/json")


async def health(request: web.Request) -> web.Response:
    return web.Response()


async def _prepare(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    # As text: objects would only be made to be turned into text again.
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
    app.router.add_get("/conversations/{id}/messages", messages)
    app.router.add_get("/health", health)
    web.run_app(app, host="127.0.0.1", port=arguments.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
