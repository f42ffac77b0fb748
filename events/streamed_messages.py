"""Messages whose text comes piece by piece, from whoever writes them: `ConversationLog.post` opens them.

A delta says where it begins, in UTF-16 code units, so that it may be sent again: what is there already is compared, and
only the rest is appended. One that begins at the end, as nearly all do, is appended unread.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from events import vocabulary
from events.appending import Appending, message_append
from events.errors import DeltaRefused, NotStreaming
from storage.append import Append, Committed, Delta, WriteKey
from storage.database import Database
from storage.errors import NotFound
from storage.idempotency import Answer
from storage.messages import Messages, VersionedMessage
from storage.records import Message, content_sha256, now, utf16_length

FinalStatus = Literal["complete", "failed", "cancelled"]

# Messages whose place is kept in memory; another one costs its next delta one read.
_PLACES = 10_000


class _Place(Struct, frozen=True):
    """What a delta must know of its message, and what never changes."""

    conversation_id: str
    position: int


class StreamedMessages:
    """An answer means that the write is durable: now, or since its key came first.

    Refuses with `NotFound`, `KeyReused`, `DeltaRefused` and `NotStreaming`; raises `StorageUnavailable` and its kinds
    for what may pass later.
    """

    def __init__(self, database: Database, appending: Appending) -> None:
        self._appending = appending
        self._messages = Messages(database)
        self._places: dict[tuple[str, str], _Place] = {}

    async def append_delta(
        self, tenant: str, message_id: str, offset: int, text: str, key: WriteKey | None = None
    ) -> Answer:
        """200 with the message's `length` after `text`, which begins at `offset`: it was appended, or there already.

        Raises `DeltaRefused` where it leaves a gap or differs from what is there.
        """
        place = self._places.get((tenant, message_id)) if text else None

        async def read() -> Append | Answer:
            nonlocal place
            await self._appending.precedence.give(message_id)
            if place is not None:
                supposed, place = place, None  # if that proves wrong, the message itself is asked
                return _append(tenant, supposed, message_id, offset, text, key)
            found = await self._messages.get_versioned(tenant, message_id)
            length = found.length
            rest = None
            if found.message.status == "streaming":
                rest = continuation(found.message.content, length, offset, text)
            if rest is None:
                raise DeltaRefused(length, found.message.status)
            if not rest:
                return Answer(200, _length(length))
            return _append(tenant, self._place(tenant, found.message), message_id, length, rest, key)

        try:
            return await self._appending.until_not_stale(tenant, key, read)
        except NotFound:  # its conversation was deleted
            self._places.pop((tenant, message_id), None)
            raise NotFound("message") from None

    def _place(self, tenant: str, message: Message) -> _Place:
        assert isinstance(message.position, int)  # a template's is open, a stored one's is not
        place = self._places[tenant, message.id] = _Place(message.conversation_id, message.position)
        if len(self._places) > _PLACES:
            del self._places[next(iter(self._places))]
        return place

    async def finish(
        self,
        tenant: str,
        message_id: str,
        status: FinalStatus,
        *,
        usage: Raw | UnsetType = UNSET,
        model: str | UnsetType = UNSET,
        tool_calls: Raw | UnsetType = UNSET,
        key: WriteKey | None = None,
    ) -> Answer:
        """200 with the message, whole. What is `UNSET` stays as it was; with the status that it has, all does.

        Raises `NotStreaming` for another status than it has.
        """

        async def read() -> Append | Answer:
            found = await self._messages.get_versioned(tenant, message_id)
            before = found.message
            if before.status == status:
                return Answer(200, vocabulary.encode_record(before))
            if before.status != "streaming":
                raise NotStreaming(before.status)
            after = msgspec.structs.replace(
                before,
                usage=before.usage if usage is UNSET else usage,
                model=before.model if model is UNSET else model,
                tool_calls=before.tool_calls if tool_calls is UNSET else tool_calls,
            )
            return _ending(tenant, found, after, status, key)

        with self._appending.precedence.of_change(message_id):
            return await self._appending.until_not_stale(tenant, key, read)

    async def fail_idle(self, tenant: str, message_id: str, last_seq: int) -> bool:
        """Ends a message as `failed`, its text kept, unless anything has happened to it since seq `last_seq`.

        True when this call has ended it.
        """
        try:
            found = await self._messages.get_versioned(tenant, message_id)
        except NotFound:
            return False
        if found.message.status != "streaming" or found.last_seq != last_seq:
            return False
        outcome = await self._appending.submit(_ending(tenant, found, found.message, "failed", None))
        return isinstance(outcome, Committed)


def continuation(content: str, length: int, offset: int, text: str) -> str | None:
    """What of `text`, which begins at UTF-16 code unit `offset`, goes beyond `content`, which has `length` of them.

    None where it leaves a gap, or differs from what is there. No surrogate pair is split: neither text ends or begins
    within one, so what begins within one differs.
    """
    if offset > length:
        return None
    if offset == length:
        return text
    there = content.encode("utf-16-le")[offset * 2 :]
    given = text.encode("utf-16-le")
    common = min(len(there), len(given))
    if there[:common] != given[:common]:
        return None
    return given[common:].decode("utf-16-le")


def _append(tenant: str, place: _Place, message_id: str, offset: int, text: str, key: WriteKey | None) -> Append:
    units = utf16_length(text)
    return Append(
        tenant,
        place.conversation_id,
        now(),
        events=[vocabulary.delta_event(message_id, place.position, offset, text)],
        answer=_length(offset + units),
        status=200,
        key=key,
        delta=Delta(message_id, offset, units),
    )


def _ending(tenant: str, found: VersionedMessage, after: Message, status: FinalStatus, key: WriteKey | None) -> Append:
    finished = msgspec.structs.replace(
        after,
        status=status,
        length=utf16_length(after.content),
        sha256=content_sha256(after.content),
        updated_at=now(),
    )
    return message_append(tenant, found.last_seq, finished, vocabulary.FINISHED[status], 200, key)


def _length(length: int) -> bytes:
    return b'{"length":%d}' % length
