"""Windows: runs of a conversation's messages by position, for virtual scrolling.

Positions have no holes, so a window is a range of an index: the same price anywhere, no OFFSET, no COUNT. One statement
reads rows, total and `as_of`: one snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import BigInteger, ColumnElement, and_, bindparam, case, select

from metrics.cache import CacheMetrics
from storage.database import Database
from storage.errors import NotFound
from storage.records import Version, Window
from storage.rows import WINDOW_COLUMNS, encoded_messages
from storage.statement import Statement
from storage.tables import conversations, messages, timeline
from storage.versions import VersionReader
from storage.window_cache import Conversation, WindowCache, WindowKey

MAX_POSITION = 2**53 - 1  # what every JSON reader can count to

_ID, _POSITION, _STATUS = 0, 1, 6  # in WINDOW_COLUMNS


class Anchor(Struct, frozen=True):
    """Where a window lies: from a position on, before it, after it, around it, or at the newest end."""

    kind: Literal["newest", "from", "before", "after", "around"]
    position: int = 0


class Windows:
    """Reads windows, and keeps those that are settled: these cost one small query that many readers share.

    A window is served from memory only when its conversation was found at the window's version by a query that began
    after it was asked for. So a read after an acknowledged write never shows what was before, whoever wrote.
    """

    def __init__(self, database: Database, metrics: CacheMetrics) -> None:
        self._database = database
        self._cache = WindowCache(database.config.cache_bytes, metrics)
        self._metrics = metrics
        self._versions = VersionReader(database)

    async def read(self, tenant: str, conversation_id: str, anchor: Anchor, limit: int) -> Window:
        """At most `limit` messages, in order. Raises `NotFound`."""
        key = WindowKey(Conversation(tenant, conversation_id), (anchor.kind, anchor.position, limit))
        if key in self._cache:
            version = await self._versions.read(tenant, conversation_id)
            window = self._cache.take(key, version)
            if window is not None:
                self._metrics.read("hit")
                return window
            self._metrics.read("stale")
        else:
            self._metrics.read("miss")
        window = await self._fetch(tenant, conversation_id, anchor, limit)
        if window.settled:
            self._cache.keep(key, window)
        return window

    async def _fetch(self, tenant: str, conversation_id: str, anchor: Anchor, limit: int) -> Window:
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
        return _window(conversation_id, rows)


def _window(conversation_id: str, rows: Sequence[Any]) -> Window:
    *_, total, last_seq, epoch = head = rows[0]
    # A conversation without messages there is one row whose message is all null.
    empty = head[_ID] is None
    items = b"[]" if empty else encoded_messages(conversation_id, rows)
    return Window(
        items,
        digest=sha256(items).hexdigest()[:32],
        first=0 if empty else head[_POSITION],
        last=0 if empty else rows[-1][_POSITION],
        settled=not empty and "streaming" not in [row[_STATUS] for row in rows],
        total=total,
        version=Version(epoch, last_seq),
    )


def _statement(first: ColumnElement[int], last: ColumnElement[int]) -> Statement:
    in_range = and_(
        messages.c.conversation_id == conversations.c.id,
        messages.c.position >= first,
        messages.c.position <= last,
    )
    return Statement(
        "messages.window",
        select(
            *WINDOW_COLUMNS,
            conversations.c.message_count,
            conversations.c.last_seq,
            select(timeline.c.epoch).scalar_subquery(),
        )
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
