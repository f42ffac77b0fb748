"""How a write becomes an answer: committed, refused, given already, or made again because others were first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from events import vocabulary
from events.errors import MessageConflict
from events.precedence import Precedence
from storage.append import (
    Append,
    Committed,
    MessageChange,
    NewEvent,
    Outcome,
    Refused,
    Seen,
    Stale,
    WriteKey,
    fill_answer,
)
from storage.database import Database
from storage.deed import Deed
from storage.errors import Contended, KeyReused, MessageDeleted, NotFound, UnknownAgent, UnknownReply
from storage.group_commit import GroupCommit
from storage.idempotency import Answer, Keys
from storage.records import Message

_ATTEMPTS = 100  # of a change that others keep overtaking; one succeeds each time


class Appending:
    """Submits appends. An answer means that the write is durable: now, or since its key came first.

    One for all who write in a process, so that they give each other `precedence`.
    """

    def __init__(self, database: Database, commits: GroupCommit) -> None:
        self.precedence = Precedence()
        self._commits = commits
        self._keys = Keys(database)

    async def submit(self, append: Append) -> Outcome:
        return await self._commits.submit(append)

    async def until_not_stale(
        self, tenant: str, key: WriteKey | None, read: Callable[[], Awaitable[Append | Answer]]
    ) -> Answer:
        """Reads, decides, and commits if nobody else did meanwhile; else again.

        `read` gives an answer where nothing is left to be written: that is not kept under the key.
        """
        for _ in range(_ATTEMPTS):
            try:
                append = await read()
            except (NotFound, MessageDeleted, MessageConflict):
                # It may be this very request, sent again, that made it so.
                replayed = await self._replayed(tenant, key)
                if replayed is None:
                    raise
                return replayed
            if isinstance(append, Answer):
                return await self._replayed(tenant, key) or append
            outcome = await self._commits.submit(append)
            if not isinstance(outcome, Stale):
                return answer(append, outcome)
        raise Contended("others kept changing it")

    async def _replayed(self, tenant: str, key: WriteKey | None) -> Answer | None:
        known = None if key is None else await self._keys.find(tenant, key)
        if known is None:
            return None
        # What comes this way changes something that is there and makes no messages: see `_first_number`.
        return Answer(known.status, fill_answer(known.answer, known.seq, known.position - 1), replayed=True)


def answer(append: Append, outcome: Outcome) -> Answer:
    """What the client is told. Raises the `refusal`."""
    match outcome:
        case Committed(seq, position):
            return Answer(append.status, fill_answer(append.answer, seq, _first_number(append, position)))
        case Seen(status, given, seq, position):
            return Answer(status, fill_answer(given, seq, _first_number(append, position)), replayed=True)
        case _:
            raise refusal(outcome)


def refusal(outcome: Outcome) -> Exception:
    """Why it must not be."""
    match outcome:
        case Refused("missing"):
            return NotFound("conversation")
        case Refused("key_reused"):
            return KeyReused("the idempotency key came with another request before")
        case Refused("unknown_agent", detail):
            return UnknownAgent(detail)
        case Refused("unknown_reply", detail):
            return UnknownReply(detail)
    return Contended("others kept changing it")


def message_append(
    tenant: str,
    expected: int,
    after: Message,
    kind: str,
    status: int,
    key: WriteKey | None,
    deed: Deed | None = None,
) -> Append:
    """Makes the message what `after` says, and says so whole, if nobody has touched it since seq `expected`."""
    encoded = vocabulary.encode_record(after)
    event = vocabulary.message_event(kind, after.id, encoded)
    return Append(
        tenant,
        after.conversation_id,
        after.updated_at,
        events=[event],
        answer=encoded if status != 204 else b"",
        status=status,
        key=key,
        change=message_change(after, expected, event if kind == vocabulary.MESSAGE_DELETED else None),
        deed=deed,
    )


def message_change(after: Message, expected: int, tombstone: NewEvent | None = None) -> MessageChange:
    row = vocabulary.message_row(after)
    return MessageChange(
        message_id=after.id,
        expected=expected,
        content=row.content,
        status=row.status,
        model=row.model,
        tool_calls=row.tool_calls,
        usage=row.usage,
        metadata=row.metadata,
        length=row.length,
        sha256=row.sha256,
        tombstone=None if tombstone is None else tombstone.payload.decode(),
    )


def _first_number(append: Append, position: int) -> int:
    """What the first `POSITION` of the answer stands for: a conversation's answer has its count of messages there."""
    return position if append.messages else position - 1
