"""Reading the log: pages for readers that are behind, heads, what moved, and what became of a lost answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, and_, bindparam, func, select

from storage.append import Append, Committed, filled_with
from storage.database import Database
from storage.errors import NotFound
from storage.log_frames import FRAMES_PAGE, FrameParts, FramesPage, frame_parameters, frames_page
from storage.records import Head, Heads, LoggedEvent, LogPage, Movement, StatePage
from storage.state import MOST_ITEMS, STATE_PAGE, state_page
from storage.statement import RawStatement, Statement, array_parameter
from storage.tables import conversations, events, timeline

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
        select(timeline.c.epoch).scalar_subquery(),
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

# The timeline is on the left of both: its epoch comes back with no conversation at all.
_HEADS = RawStatement(
    "log.heads",
    postgresql=(
        "SELECT t.epoch, c.id, c.floor_seq, c.last_seq FROM timeline t"
        " LEFT JOIN conversations c ON c.id = ANY($2::uuid[]) AND c.tenant = $1 AND c.deleted_at IS NULL"
    ),
    sqlite=(
        "SELECT t.epoch, c.id, c.floor_seq, c.last_seq FROM timeline t LEFT JOIN conversations c"
        " ON c.id IN (SELECT value FROM json_each(?2)) AND c.tenant = ?1 AND c.deleted_at IS NULL"
    ),
    parameters=["tenant", "ids"],
)
_MOVED = RawStatement(
    "log.moved",
    postgresql=(
        "SELECT t.epoch, m.id, m.last_seq FROM timeline t LEFT JOIN ("
        "SELECT c.id, c.last_seq FROM unnest($1::text[], $2::uuid[], $3::bigint[]) AS w (tenant, id, seq)"
        " JOIN conversations c ON c.id = w.id AND c.tenant = w.tenant WHERE c.last_seq <> w.seq"
        ") AS m ON true"
    ),
    sqlite=(
        "SELECT t.epoch, m.id, m.last_seq FROM timeline t LEFT JOIN ("
        "SELECT c.id, c.last_seq FROM json_each(?1) AS w JOIN json_each(?2) AS i ON i.key = w.key"
        " JOIN json_each(?3) AS s ON s.key = w.key"
        " JOIN conversations c ON c.id = i.value AND c.tenant = w.value WHERE c.last_seq <> s.value"
        ") AS m ON true"
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
# A delta's payload says where its text begins, a run's says when it came to its state: there is no other like it.
_FIND_DELTA = "SELECT seq FROM events WHERE message_id = $1 AND payload = $2"
_FIND_RUN = "SELECT seq FROM events WHERE conversation_id = $1 AND payload = $2 ORDER BY seq DESC LIMIT 1"
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
        epoch, floor, head, deleted_at = rows[0][:4]
        found = [LoggedEvent(row[4], row[5], row[6].encode()) for row in rows if row[4] is not None]
        return LogPage(epoch, floor, head, deleted_at is not None, found)

    async def frames(
        self, tenant: str, conversation_id: str, after: int, parts: FrameParts, *, limit: int, budget: int
    ) -> FramesPage:
        """The same as the bytes that readers are given; `budget` counts bytes of their payloads."""
        rows = await self._database.fetch(
            FRAMES_PAGE,
            tenant=tenant,
            conversation_id=conversation_id,
            after=after,
            last=after + limit,
            budget=budget,
            **frame_parameters(parts),
        )
        if not rows:
            raise NotFound("conversation")
        return frames_page(rows[0], parts)

    async def state(self, tenant: str, conversation_id: str, after: int, *, limit: int, budget: int) -> StatePage:
        """What was touched after seq `after`, as it is now, by the seq that last touched it. Raises `NotFound`.

        Messages are whole, streaming ones with their text so far; a run comes after its message. At most `limit` items
        (and `MOST_ITEMS`), and none that follows about `budget` characters, but one at least; items of one seq are
        never parted, so that the last one's seq is where the next page goes on.
        """
        rows = await self._database.fetch(
            STATE_PAGE,
            tenant=tenant,
            conversation_id=conversation_id,
            after=after,
            limit=min(limit, MOST_ITEMS),
            budget=budget,
        )
        if not rows:
            raise NotFound("conversation")
        return state_page(rows)

    async def heads(self, tenant: str, ids: Sequence[str]) -> Heads:
        """Floor and head of those of the conversations that are the tenant's and not deleted. One query."""
        rows = await self._database.fetch(_HEADS, tenant=tenant, ids=array_parameter(self._database.dialect, ids))
        return Heads(rows[0][0], {row[1]: Head(row[2], row[3]) for row in rows if row[1] is not None})

    async def moved(self, known: Sequence[tuple[str, str, int]]) -> Movement:
        """Of conversations `(tenant, id, seq)`, those whose log does not end at that seq. One query.

        A seq that is too high is of another timeline: its backup was restored.
        """
        dialect = self._database.dialect
        rows = await self._database.fetch(
            _MOVED,
            tenants=array_parameter(dialect, [tenant for tenant, _, _ in known]),
            ids=array_parameter(dialect, [conversation_id for _, conversation_id, _ in known]),
            seqs=array_parameter(dialect, [seq for _, _, seq in known]),
        )
        return Movement(rows[0][0], [(row[1], row[2]) for row in rows if row[1] is not None])

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
            numbers = None if state_seq is None else await self._numbers(driver, append, state_seq)
            if numbers is None:
                return None
            return Committed(*numbers, await driver.fetchval("SELECT epoch FROM timeline"))

    async def _numbers(self, driver: Any, append: Append, state_seq: int) -> tuple[int, int] | None:
        """The append's first seq and position, while its conversation's row is locked."""
        event = append.events[0]
        payload = event.payload.decode()
        if append.messages:
            created = await driver.fetchrow(_FIND_CREATED, append.tenant, append.messages[0].id)
            return None if created is None else (created[1], created[0])
        if append.change is not None:
            seq = await driver.fetchval(_FIND_CHANGED, append.change.message_id, append.change.expected, payload)
            return None if seq is None else (seq, 0)
        if append.delta is not None:
            seq = await driver.fetchval(_FIND_DELTA, append.delta.message_id, payload)
            return None if seq is None else (seq, 0)
        if append.conversation is not None:
            if append.conversation.expected == state_seq:
                return None
            first = await driver.fetchrow(_FIND_STATE, append.conversation_id, append.conversation.expected)
            count = None if first is None else filled_with(event.payload, first[0], first[1].encode())
            return None if count is None else (first[0], count - event.rank)
        seq = await driver.fetchval(_FIND_RUN, append.conversation_id, payload)
        return None if seq is None else (seq, 0)
