"""Conversations as such: made, read, listed. What changes them takes a seq, and goes through the log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec import Raw, Struct
from sqlalchemy import BigInteger, and_, bindparam, insert, or_, select

from storage.cursor import decode_time_and_id, encode_cursor
from storage.database import Database
from storage.errors import NotFound
from storage.idempotency import Answer, WriteKey, once
from storage.records import Conversation, new_id, now
from storage.rows import CONVERSATION_COLUMNS, conversation, from_time, to_time
from storage.statement import RawStatement, Statement, array_parameter
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


_COLUMNS = ", ".join(map(str, CONVERSATION_COLUMNS))
_OF_THE_TENANT = f"SELECT {_COLUMNS}, deleted_at FROM conversations WHERE id {{given}} AND tenant = {{tenant}}"  # noqa: S608
_STATES = RawStatement(
    "conversations.states",
    postgresql=_OF_THE_TENANT.format(tenant="$1", given="= ANY($2::uuid[])"),
    sqlite=_OF_THE_TENANT.format(tenant="?1", given="IN (SELECT value FROM json_each(?2))"),
    parameters=["tenant", "ids"],
)
# Two ranges, of the two indexes.
_TOUCHED_SINCE = (
    "SELECT tenant, id, last_seq, false AS deleted, last_activity_at AS at FROM conversations"
    " WHERE tenant {in_tenants} AND deleted_at IS NULL AND last_activity_at >= {since}"
    " UNION ALL SELECT tenant, id, last_seq, true, deleted_at FROM conversations"
    " WHERE tenant {in_tenants} AND deleted_at >= {since}"
    " ORDER BY at DESC LIMIT {limit}"
)
_TOUCHED = RawStatement(
    "conversations.touched",
    postgresql=_TOUCHED_SINCE.format(in_tenants="= ANY($1::text[])", since="$2", limit="$3"),
    sqlite=_TOUCHED_SINCE.format(in_tenants="IN (SELECT value FROM json_each(?1))", since="?2", limit="?3"),
    parameters=["tenants", "since", "limit"],
)


class VersionedConversation(Struct, frozen=True):
    """A conversation with the seq that last touched its own fields."""

    conversation: Conversation
    state_seq: int


class Touched(Struct, frozen=True):
    """A conversation that was active or deleted `at` that time, as its process's clock had it."""

    tenant: str
    id: str
    last_seq: int
    deleted: bool
    at: datetime


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

    async def states(self, tenant: str, ids: Sequence[str]) -> tuple[list[Conversation], list[str]]:
        """Of those ids that are the tenant's: the conversations, and the ids of the deleted ones. In no order."""
        rows = await self._database.fetch(_STATES, tenant=tenant, ids=array_parameter(self._database.dialect, ids))
        live = [conversation(row) for row in rows if row[-1] is None]
        return live, [row[0] for row in rows if row[-1] is not None]

    async def touched(self, tenants: Sequence[str], since: datetime, limit: int) -> list[Touched]:
        """What was active or deleted since then, latest first, at most `limit` of them.

        A conversation's time of last activity is rewritten at most once a second: whoever asks again, for what came
        after the last time, asks from a second earlier.
        """
        dialect = self._database.dialect
        rows = await self._database.fetch(
            _TOUCHED, tenants=array_parameter(dialect, tenants), since=to_time(since, dialect), limit=limit
        )
        return [
            Touched(tenant, conversation_id, head, bool(deleted), from_time(at))
            for tenant, conversation_id, head, deleted, at in rows
        ]
