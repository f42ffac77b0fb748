"""A window written by hand with aiohttp, asyncpg and msgspec: about the fastest that these three do in a page of code.

It reads Swarm's own tables, so that both give the same items: one prepared statement, a range of the index on
positions, total and `as_of` from the same snapshot. It leaves out what Swarm does besides: ETag, links, the text of a
message that still streams, more kinds of windows, checks of what it is asked.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web
from msgspec import Raw, Struct

from bench.peers.hand_made import POOL, Message, run

_SELECT = """
SELECT m.id::text, m.position, m.role, m.agent_id, m.run_id::text, m.content, m.status, m.reply_to::text, m.model,
       m.tool_calls, m.usage, m.metadata, m.length, m.sha256, m.created_at, m.updated_at, c.message_count, c.last_seq
FROM conversations c LEFT JOIN messages m ON m.conversation_id = c.id AND {range}
WHERE c.id = $1 AND c.tenant = 'default' AND c.deleted_at IS NULL
ORDER BY m.position
"""
_FROM = _SELECT.format(range="m.position >= $2 AND m.position < $2 + $3")
_NEWEST = _SELECT.format(range="m.position > c.message_count - $2 AND m.position <= c.message_count")


class _Window(Struct, gc=False):
    items: list[Message]
    total: int
    as_of: int


_encode = msgspec.json.Encoder().encode


async def _window(request: web.Request) -> web.Response:
    conversation_id, query, pool = request.match_info["id"], request.query, request.app[POOL]
    limit = int(query.get("limit", "50"))
    if "from" in query:
        rows = await pool.fetch(_FROM, conversation_id, int(query["from"]), limit)
    else:
        rows = await pool.fetch(_NEWEST, conversation_id, limit)
    if not rows:
        raise web.HTTPNotFound
    head = rows[0]
    # A conversation without messages there is one row whose message is all null.
    items = [_message(conversation_id, *row) for row in rows] if head[0] is not None else []
    return web.Response(body=_encode(_Window(items, head[-2], head[-1])), content_type="application/json")


def _message(
    conversation_id: str,
    id_: str,
    position: int,
    role: str,
    agent_id: str | None,
    run_id: str | None,
    content: str,
    status: str,
    reply_to: str | None,
    model: str | None,
    tool_calls: str,
    usage: str | None,
    metadata: str,
    *rest: Any,
) -> Message:
    return Message(
        id_,
        conversation_id,
        position,
        role,
        agent_id,
        run_id,
        content,
        status,
        reply_to,
        model,
        Raw(tool_calls),
        None if usage is None else Raw(usage),
        Raw(metadata),
        *rest[:-2],  # its conversation's numbers come last
    )


if __name__ == "__main__":
    run("by_hand", __doc__, web.get("/conversations/{id}/messages", _window))
