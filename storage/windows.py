"""Windows: runs of a conversation's messages by position, for virtual scrolling.

Positions have no holes, so a window is a range of an index: the same price anywhere, no OFFSET, no COUNT. One statement
reads rows, total and `as_of`: one snapshot.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import BigInteger, ColumnElement, and_, bindparam, case, select

from storage.database import Database
from storage.errors import NotFound
from storage.records import Window
from storage.rows import MESSAGE_COLUMNS, message
from storage.statement import Statement
from storage.tables import conversations, messages

MAX_POSITION = 2**53 - 1  # what every JSON reader can count to


class Anchor(Struct, frozen=True):
    """Where a window lies: from a position on, before it, after it, around it, or at the newest end."""

    kind: Literal["newest", "from", "before", "after", "around"]
    position: int = 0


class Windows:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, tenant: str, conversation_id: str, anchor: Anchor, limit: int) -> Window:
        """At most `limit` messages, in order. Raises `NotFound`."""
        values: dict[str, Any] = {"tenant": tenant, "conversation_id": conversation_id}
        match anchor.kind:
            case "from":
                statement = _RANGE
                values |= {"first": anchor.position, "last": anchor.position + limit - 1}
            case "after":
                statement = _RANGE
                values |= {"first": anchor.position + 1, "last": anchor.position + limit}
            case "before":
                statement = _ENDING
                values |= {"last": anchor.position - 1, "limit": limit}
            case "newest":
                statement = _ENDING
                values |= {"last": MAX_POSITION, "limit": limit}
            case _:
                statement = _AROUND
                values |= {"first": anchor.position - limit // 2, "limit": limit}
        rows = await self._database.fetch(statement, **values)
        if not rows:
            raise NotFound("conversation")
        head = rows[0]
        # A conversation without messages there is one row whose message is all null.
        items = [message(row) for row in rows] if head[0] is not None else []
        return Window(items, total=head[-2], as_of=head[-1])


def _statement(first: ColumnElement[int], last: ColumnElement[int]) -> Statement:
    in_range = and_(
        messages.c.conversation_id == conversations.c.id,
        messages.c.position >= first,
        messages.c.position <= last,
    )
    return Statement(
        "messages.window",
        select(*MESSAGE_COLUMNS, conversations.c.message_count, conversations.c.last_seq)
        .select_from(conversations.outerjoin(messages, in_range))
        .where(
            conversations.c.id == bindparam("conversation_id"),
            conversations.c.tenant == bindparam("tenant"),
            conversations.c.deleted_at.is_(None),
        )
        .order_by(messages.c.position),
    )


def _least(a: ColumnElement[int], b: ColumnElement[int]) -> ColumnElement[int]:
    return case((a < b, a), else_=b)


_first = bindparam("first", type_=BigInteger)
_last = bindparam("last", type_=BigInteger)
_limit = bindparam("limit", type_=BigInteger)
_count = conversations.c.message_count

_RANGE = _statement(_first, _last)
_end = _least(_last, _count)
_ENDING = _statement(_end - _limit + 1, _end)
# Near an end the window moves inwards, so that it is full wherever the conversation is long enough.
_begin = _least(_first, _count - _limit + 1)
_begin = case((_begin < 1, 1), else_=_begin)
_AROUND = _statement(_begin, _begin + _limit - 1)
