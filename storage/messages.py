"""Single messages, and the newest of all conversations."""

from __future__ import annotations

from msgspec import Struct
from sqlalchemy import BigInteger, and_, bindparam, func, select

from storage.cursor import decode_id, encode_cursor
from storage.database import Database
from storage.errors import NotFound
from storage.records import Message
from storage.rows import MESSAGE_COLUMNS, message
from storage.statement import Statement
from storage.tables import Id, conversations, messages, streaming_messages

_LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"

_streaming = streaming_messages.c
_live = messages.join(conversations, conversations.c.id == messages.c.conversation_id)
_GET = Statement(
    "messages.get",
    select(
        *MESSAGE_COLUMNS,
        func.coalesce(_streaming.last_seq, messages.c.last_seq),
        func.coalesce(_streaming.length, messages.c.length),
    )
    .select_from(
        _live.outerjoin(
            streaming_messages,
            and_(
                _streaming.conversation_id == messages.c.conversation_id,
                _streaming.message_id == messages.c.id,
                messages.c.status == "streaming",
            ),
        )
    )
    .where(
        messages.c.tenant == bindparam("tenant"),
        messages.c.id == bindparam("id"),
        conversations.c.deleted_at.is_(None),
    ),
)
_NEWEST = Statement(
    "messages.newest",
    select(*MESSAGE_COLUMNS)
    .select_from(_live)
    .where(
        messages.c.tenant == bindparam("tenant"),
        # Ids are UUIDv7: their order is the order of time.
        messages.c.id < bindparam("before", type_=Id),
        conversations.c.deleted_at.is_(None),
    )
    .order_by(messages.c.id.desc())
    .limit(bindparam("limit", type_=BigInteger)),
)


class VersionedMessage(Struct, frozen=True):
    """A message with the seq that last touched it, its deltas included, and its length in UTF-16 code units.

    That length a streaming message has, too: it is how much of its text there is so far.
    """

    message: Message
    last_seq: int
    length: int


class Messages:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant: str, message_id: str) -> Message:
        """Raises `NotFound`."""
        return (await self.get_versioned(tenant, message_id)).message

    async def get_versioned(self, tenant: str, message_id: str) -> VersionedMessage:
        """The message as an edit needs it. Raises `NotFound`."""
        rows = await self._database.fetch(_GET, tenant=tenant, id=message_id)
        if not rows:
            raise NotFound("message")
        return VersionedMessage(message(rows[0]), *rows[0][-2:])

    async def newest(self, tenant: str, limit: int, cursor: str | None) -> tuple[list[Message], str | None]:
        """Messages of all the tenant's conversations, newest first, and the cursor of the next page.

        Raises `InvalidCursor`.
        """
        before = _LAST_ID if cursor is None else decode_id(cursor)
        rows = await self._database.fetch(_NEWEST, tenant=tenant, before=before, limit=limit + 1)
        items = [message(row) for row in rows[:limit]]
        return items, encode_cursor(items[-1].id) if len(rows) > limit else None
