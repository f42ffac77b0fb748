"""Retention: the log loses the events at its beginning, and its floor rises; what they made stays.

Who resumes from below the floor is given the state instead (see `storage.state`). Writers go on meanwhile: one
conversation is locked at a time, for as long as it takes to delete one batch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

from msgspec import Struct
from sqlalchemy import BigInteger, ColumnElement, ScalarSelect, and_, bindparam, delete, func, or_, select, update

from storage.database import Database
from storage.errors import NotFound
from storage.rows import from_time, to_time
from storage.statement import Statement
from storage.tables import Id, Time, conversations, events, messages, streaming_messages

_BATCH = 5_000  # events in one transaction: what writers of the conversation may have to wait for
_PAGE = 500  # conversations looked up at once
_BEFORE_ALL = "00000000-0000-0000-0000-000000000000"

# A conversation's time of last activity is rewritten at most once a second: its last event may be so much later.
_ACTIVITY_LAG = timedelta(seconds=1)

_c, _e, _s = conversations.c, events.c, streaming_messages.c


def _first_streaming(conversation_id: ColumnElement[str]) -> ScalarSelect[int]:
    """The seq that created the first of the messages that are streaming: their text is in the events since."""
    return (
        select(func.min(_s.created_seq))
        .join_from(
            streaming_messages,
            messages,
            and_(messages.c.tenant == _s.tenant, messages.c.id == _s.message_id, messages.c.status == "streaming"),
        )
        .where(_s.conversation_id == conversation_id)
        .correlate(conversations)
        .scalar_subquery()
    )


# With the age of the first event: most conversations have nothing to lose, and are not looked at further.
_candidates = select(
    _c.id,
    _c.floor_seq,
    _c.last_seq,
    _c.last_activity_at,
    _first_streaming(_c.id),
    select(_e.at)
    .where(_e.conversation_id == _c.id, _e.seq == _c.floor_seq + 1)
    .correlate(conversations)
    .scalar_subquery(),
).where(_c.deleted_at.is_(None))
_page = (
    _candidates.where(
        _c.id > bindparam("after", type_=Id), _c.last_seq - bindparam("keep", type_=BigInteger) > _c.floor_seq
    )
    .order_by(_c.id)
    .limit(_PAGE)
)
_of_the_tenant = _c.tenant == bindparam("tenant")
_one = _candidates.where(_c.id == bindparam("id", type_=Id))
_PAGE_OF_ALL = Statement("retention.find", _page)
_PAGE_OF_THE_TENANT = Statement("retention.find", _page.where(_of_the_tenant))
_ONE = Statement("retention.find", _one)
_ONE_OF_THE_TENANT = Statement("retention.find", _one.where(_of_the_tenant))

_before = bindparam("before", type_=Time)
_in_range = and_(
    _e.conversation_id == bindparam("conversation_id", type_=Id),
    _e.seq > bindparam("first", type_=BigInteger),
    _e.seq <= bindparam("last", type_=BigInteger),
)
_young = select(func.min(_e.seq).label("seq")).where(_in_range, _e.at >= _before).cte("young")
_AGES = Statement(
    "retention.ages",
    select(
        _young.c.seq,
        select(func.max(_e.seq))
        .where(_in_range, _e.at < _before, or_(_young.c.seq.is_(None), _e.seq < _young.c.seq))
        .correlate(_young)
        .scalar_subquery(),
    ),
)


class Retained(Struct, frozen=True):
    """How many events went, and from how many conversations."""

    conversations: int
    events: int


class _Candidate(Struct, frozen=True):
    id: str
    floor: int
    head: int
    last_activity_at: datetime
    first_streaming: int | None
    first_at: datetime | None


class Retention:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def retain(
        self, *, before: datetime | None, keep: int, tenant: str | None = None, conversation_id: str | None = None
    ) -> Retained:
        """Removes from each conversation's log the events older than `before`, None for any age, up to the first that
        is not.

        The newest `keep` stay, and so does every event since the creation of a message that is streaming. An event of
        unknown age is as old as the next one whose age is known. Of all conversations, or of the tenant's, or of one:
        raises `NotFound` where that one is not there.
        """
        touched = removed = 0
        async for candidate in self._candidates(keep, tenant, conversation_id):
            count = await self._retain(candidate, before, keep)
            touched += count > 0
            removed += count
        return Retained(touched, removed)

    async def _candidates(
        self, keep: int, tenant: str | None, conversation_id: str | None
    ) -> AsyncIterator[_Candidate]:
        scope: dict[str, Any] = {} if tenant is None else {"tenant": tenant}
        if conversation_id is not None:
            one = _ONE if tenant is None else _ONE_OF_THE_TENANT
            rows = await self._database.fetch(one, id=conversation_id, **scope)
            if not rows:
                raise NotFound("conversation")
            yield _candidate(rows[0])
            return
        page = _PAGE_OF_ALL if tenant is None else _PAGE_OF_THE_TENANT
        after = _BEFORE_ALL
        while rows := await self._database.fetch(page, after=after, keep=keep, **scope):
            for row in rows:
                yield _candidate(row)
            after = rows[-1][0]

    async def _retain(self, candidate: _Candidate, before: datetime | None, keep: int) -> int:
        if before is not None and candidate.first_at is not None and candidate.first_at >= before:
            return 0
        limit = candidate.head - keep
        if candidate.first_streaming is not None:
            limit = min(limit, candidate.first_streaming - 1)
        if before is not None:
            limit = await self._last_older(candidate, limit, before)
        removed = 0
        while count := await self._database.to_its_end(self._remove_batch(candidate.id, limit, keep)):
            removed += count
        return removed

    async def _last_older(self, candidate: _Candidate, limit: int, before: datetime) -> int:
        """The seq up to which the log is older than `before`, as far as `limit`. An event's age never changes."""
        older = first = candidate.floor
        while first < limit:
            last = min(first + _BATCH, limit)
            [(young, old)] = await self._database.fetch(
                _AGES,
                conversation_id=candidate.id,
                first=first,
                last=last,
                before=to_time(before, self._database.dialect),
            )
            if old is not None:
                older = old
            if young is not None:
                return older
            first = last
        # No event was found to be young: where none has happened since, those of unknown age are old, too.
        return limit if candidate.last_activity_at + _ACTIVITY_LAG < before else older

    async def _remove_batch(self, conversation_id: str, limit: int, keep: int) -> int:
        async with self._database.transaction("retention.remove") as connection:
            locked = await connection.execute(
                select(_c.floor_seq, _c.last_seq)
                .where(_c.id == conversation_id, _c.deleted_at.is_(None))
                .with_for_update()
            )
            row = locked.one_or_none()
            if row is None:
                return 0  # deleted meanwhile: what is left of it is housekeeping's
            # Read anew by a statement that begins with the lock held: its last holder may have begun to stream.
            first_streaming = await connection.scalar(select(_first_streaming(bindparam("id", conversation_id, Id))))
            floor = min(limit, row.floor_seq + _BATCH, row.last_seq - keep)
            if first_streaming is not None:
                floor = min(floor, first_streaming - 1)
            if floor <= row.floor_seq:
                return 0
            # Both in one transaction: a reader sees the events, or the floor above them.
            await connection.execute(update(conversations).where(_c.id == conversation_id).values(floor_seq=floor))
            removed = await connection.execute(
                delete(events).where(_e.conversation_id == conversation_id, _e.seq <= floor)
            )
            return removed.rowcount


def _candidate(row: Any) -> _Candidate:
    conversation_id, floor, head, last_activity_at, first_streaming, first_at = row
    return _Candidate(
        conversation_id,
        floor,
        head,
        from_time(last_activity_at),
        first_streaming,
        None if first_at is None else from_time(first_at),
    )
