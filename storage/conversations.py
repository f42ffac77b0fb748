"""Conversations as such: made, read, listed. What changes them takes a seq, and goes through the log."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct
from sqlalchemy import BigInteger, and_, bindparam, insert, or_, select

from storage.cursor import decode_time_and_id, encode_cursor
from storage.database import Database
from storage.errors import NotFound
from storage.idempotency import Answer, WriteKey, once
from storage.records import Conversation, new_id, now
from storage.rows import CONVERSATION_COLUMNS, conversation, to_time
from storage.statement import Statement
from storage.tables import Id, Time, conversations

_c = conversations.c
_GET = Statement(
    "conversations.get",
    select(*CONVERSATION_COLUMNS, _c.state_seq).where(
        _c.id == bindparam("id"), _c.tenant == bindparam("tenant"), _c.deleted_at.is_(None)
    ),
)
_limit = bindparam("limit", type_=BigInteger)
_by_activity = (
    select(*CONVERSATION_COLUMNS)
    .where(_c.tenant == bindparam("tenant"), _c.deleted_at.is_(None))
    .order_by(_c.last_activity_at.desc(), _c.id.desc())
    .limit(_limit)
)
_FIRST_PAGE = Statement("conversations.page", _by_activity)
_at, _id = bindparam("at", type_=Time), bindparam("id", type_=Id)
_NEXT_PAGE = Statement(
    "conversations.page",
    _by_activity.where(
        _c.last_activity_at <= _at,
        or_(_c.last_activity_at < _at, and_(_c.last_activity_at == _at, _c.id < _id)),
    ),
)


class VersionedConversation(Struct, frozen=True):
    """A conversation with the seq that last touched its own fields."""

    conversation: Conversation
    state_seq: int


class Conversations:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, tenant: str, title: str | None, metadata: Raw, key: WriteKey | None) -> Answer:
        """201 with the conversation. Raises `KeyReused`."""
        return await self._database.to_its_end(self._create(tenant, title, metadata, key))

    async def _create(self, tenant: str, title: str | None, metadata: Raw, key: WriteKey | None) -> Answer:
        at = now()
        made = Conversation(new_id(), title, metadata, 0, 0, at, at, at)

        async def write() -> Answer:
            stored = to_time(at, self._database.dialect)
            await connection.execute(
                insert(conversations).values(
                    id=made.id,
                    tenant=tenant,
                    title=title,
                    metadata=bytes(metadata).decode(),
                    message_count=0,
                    last_seq=0,
                    floor_seq=0,
                    state_seq=0,
                    created_at=stored,
                    updated_at=stored,
                    last_activity_at=stored,
                )
            )
            return Answer(201, msgspec.json.encode(made))

        async with self._database.transaction("conversations.create") as connection:
            return await once(connection, tenant, key, write)

    async def get(self, tenant: str, conversation_id: str) -> Conversation:
        """Raises `NotFound`."""
        return (await self.get_versioned(tenant, conversation_id)).conversation

    async def get_versioned(self, tenant: str, conversation_id: str) -> VersionedConversation:
        """The conversation as a change needs it. Raises `NotFound`."""
        rows = await self._database.fetch(_GET, tenant=tenant, id=conversation_id)
        if not rows:
            raise NotFound("conversation")
        return VersionedConversation(conversation(rows[0]), rows[0][-1])

    async def page(self, tenant: str, limit: int, cursor: str | None) -> tuple[list[Conversation], str | None]:
        """By last activity, latest first, and the cursor of the next page. Raises `InvalidCursor`.

        One that nothing touches during a walk through the pages is met exactly once.
        """
        if cursor is None:
            rows = await self._database.fetch(_FIRST_PAGE, tenant=tenant, limit=limit + 1)
        else:
            at, last = decode_time_and_id(cursor)
            stored = to_time(at, self._database.dialect)
            rows = await self._database.fetch(_NEXT_PAGE, tenant=tenant, limit=limit + 1, at=stored, id=last)
        items = [conversation(row) for row in rows[:limit]]
        more = len(rows) > limit
        return items, encode_cursor(items[-1].last_activity_at, items[-1].id) if more else None
