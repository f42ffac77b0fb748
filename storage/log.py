"""Reading the log: pages for readers that are behind, heads of what moved, and what became of a lost answer."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sqlalchemy import BigInteger, and_, bindparam, func, select

from storage.append import Append, Committed, filled_with
from storage.database import Database
from storage.errors import NotFound
from storage.records import LoggedEvent, LogPage
from storage.statement import RawStatement, Statement
from storage.tables import conversations, events

_size = func.length(events.c.payload)
_page = (
    select(
        events.c.seq,
        events.c.kind,
        events.c.payload,
        (func.sum(_size).over(order_by=events.c.seq) - _size).label("before"),
    )
    .where(
        events.c.conversation_id == bindparam("conversation_id"),
        events.c.seq > bindparam("after", type_=BigInteger),
        events.c.seq <= bindparam("last", type_=BigInteger),
    )
    .subquery()
)
_PAGE = Statement(
    "log.page",
    select(
        conversations.c.floor_seq,
        conversations.c.last_seq,
        conversations.c.deleted_at,
        _page.c.seq,
        _page.c.kind,
        _page.c.payload,
    )
    .select_from(conversations.outerjoin(_page, _page.c.before < bindparam("budget", type_=BigInteger)))
    .where(and_(conversations.c.id == bindparam("conversation_id"), conversations.c.tenant == bindparam("tenant")))
    .order_by(_page.c.seq),
)

_MOVED = RawStatement(
    "log.moved",
    postgresql=(
        "SELECT c.id, c.last_seq FROM unnest($1::text[], $2::uuid[], $3::bigint[]) AS w (tenant, id, seq)"
        " JOIN conversations c ON c.id = w.id AND c.tenant = w.tenant WHERE c.last_seq > w.seq"
    ),
    sqlite=(
        "SELECT c.id, c.last_seq FROM json_each(?1) AS t JOIN json_each(?2) AS i ON i.key = t.key"
        " JOIN json_each(?3) AS s ON s.key = t.key"
        " JOIN conversations c ON c.id = i.value AND c.tenant = t.value WHERE c.last_seq > s.value"
    ),
    parameters=["tenants", "ids", "seqs"],
)

# The lock is waited for: a server that has lost its client may still be committing.
_LOCK = "SELECT state_seq FROM conversations WHERE id = $1 FOR UPDATE"
_FIND_CREATED = (
    "SELECT m.position, (SELECT min(e.seq) FROM events e WHERE e.message_id = m.id)"
    " FROM messages m WHERE m.tenant = $1 AND m.id = $2"
)
_FIND_CHANGED = "SELECT seq FROM events WHERE message_id = $1 AND seq > $2 AND payload = $3"
# Who changed the conversation first after `expected`: whoever came later was told that it had changed.
_FIND_STATE = (
    "SELECT seq, payload FROM events"
    " WHERE conversation_id = $1 AND seq > $2 AND message_id IS NULL AND kind LIKE 'conversation.%'"
    " ORDER BY seq LIMIT 1"
)


class Log:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, tenant: str, conversation_id: str, after: int, *, limit: int, budget: int) -> LogPage:
        """The events after seq `after`, with floor and head, in one snapshot. Raises `NotFound`.

        At most `limit` of them, and none that follows `budget` characters: a page is at least one event. A deleted
        conversation still has its last event.
        """
        rows = await self._database.fetch(
            _PAGE,
            tenant=tenant,
            conversation_id=conversation_id,
            after=after,
            last=after + limit,
            budget=budget,
        )
        if not rows:
            raise NotFound("conversation")
        floor, head, deleted_at = rows[0][:3]
        found = [LoggedEvent(row[3], row[4], row[5].encode()) for row in rows if row[3] is not None]
        return LogPage(floor, head, deleted_at is not None, found)

    async def moved(self, known: Iterable[tuple[str, str, int]]) -> list[tuple[str, int]]:
        """Of conversations `(tenant, id, seq)`, those whose log goes beyond that seq: `(id, last seq)`. One query."""
        tenants, ids, seqs = (list(column) for column in zip(*known, strict=True))
        values: dict[str, object] = {"tenants": tenants, "ids": ids, "seqs": seqs}
        if self._database.dialect == "sqlite":
            values = {name: msgspec.json.encode(column).decode() for name, column in values.items()}
        return [(row[0], row[1]) for row in await self._database.fetch(_MOVED, **values)]

    async def find(self, append: Append) -> Committed | None:
        """What became of an append whose answer was lost: its numbers, or None when it was not committed.

        Only PostgreSQL loses answers: SQLite commits in this process.
        """
        async with (
            self._database.operation("log.find"),
            self._database.driver() as driver,
            driver.transaction(),
        ):
            state_seq = await driver.fetchval(_LOCK, append.conversation_id)
            if state_seq is None:
                return None
            if append.messages:
                created = await driver.fetchrow(_FIND_CREATED, append.tenant, append.messages[0].id)
                return None if created is None else Committed(created[1], created[0])
            event = append.events[0]
            if append.change is not None:
                change, payload = append.change, event.payload.decode()
                seq = await driver.fetchval(_FIND_CHANGED, change.message_id, change.expected, payload)
                return None if seq is None else Committed(seq, 0)
            if append.conversation is None or append.conversation.expected == state_seq:
                return None
            first = await driver.fetchrow(_FIND_STATE, append.conversation_id, append.conversation.expected)
            count = None if first is None else filled_with(event.payload, first[0], first[1].encode())
            return None if count is None else Committed(first[0], count - event.rank)
