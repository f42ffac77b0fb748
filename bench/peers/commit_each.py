"""A message stored by hand with aiohttp, asyncpg and msgspec: one transaction, one round trip and one flush for each.

It writes Swarm's own tables, the rows that Swarm's append writes: the conversation's counters, the message and its
event, in one statement, which is its own transaction. It leaves out what Swarm does besides: idempotency keys, agents
and replies that must exist, several messages at once, telling subscribers.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Literal

import msgspec
from aiohttp import web
from msgspec import Raw, Struct
from uuid_utils import uuid7

from bench.peers.hand_made import POOL, Message, run

_POSITION = b"\x02"  # stands in a message's JSON, which never holds it, for the position that the database gives it

_INSERT = """
WITH conversation AS (
    UPDATE conversations SET last_seq = last_seq + 1, message_count = message_count + 1,
        last_activity_at = CASE WHEN $3 >= last_activity_at + interval '1 second' THEN $3 ELSE last_activity_at END
    WHERE id = $1 AND tenant = 'default' AND deleted_at IS NULL
    RETURNING message_count AS position, last_seq
), message AS (
    INSERT INTO messages (tenant, id, conversation_id, position, role, content, status, tool_calls, metadata, length,
        sha256, created_at, updated_at, last_seq)
    SELECT 'default', $2, $1, position, $4, $5, 'complete', '[]', $6, $7, $8, $3, $3, last_seq FROM conversation
), event AS (
    INSERT INTO events (conversation_id, seq, tenant, kind, message_id, payload, at)
    SELECT $1, last_seq, 'default', 'message.created', $2, $9 || position || $10, $3 FROM conversation
)
SELECT position FROM conversation
"""


class _Posted(Struct):
    role: Literal["user", "agent", "system", "tool"]
    content: str
    metadata: Raw = Raw(b"{}")


_decode = msgspec.json.Decoder(_Posted).decode
_encode = msgspec.json.Encoder().encode


async def _post(request: web.Request) -> web.Response:
    try:
        posted = _decode(await request.read())
    except msgspec.MsgspecError as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from None
    conversation_id = request.match_info["id"]
    text, at = posted.content, datetime.now(UTC)
    message = Message(
        id=str(uuid7()),
        conversation_id=conversation_id,
        position=Raw(_POSITION),
        role=posted.role,
        agent_id=None,
        run_id=None,
        content=text,
        status="complete",
        reply_to=None,
        model=None,
        tool_calls=Raw(b"[]"),
        usage=None,
        metadata=posted.metadata,
        length=len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        created_at=at,
        updated_at=at,
    )
    before, _, after = _encode(message).partition(_POSITION)
    position = await request.app[POOL].fetchval(
        _INSERT,
        conversation_id,
        message.id,
        at,
        message.role,
        message.content,
        bytes(message.metadata).decode(),
        message.length,
        message.sha256,
        '{"message":' + before.decode(),
        after.decode() + "}",
    )
    if position is None:
        raise web.HTTPNotFound
    return web.Response(body=b"%b%d%b" % (before, position, after), status=201, content_type="application/json")


if __name__ == "__main__":
    run("commit_each", __doc__, web.post("/conversations/{id}/messages", _post))
