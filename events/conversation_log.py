"""Every write that takes a seq: what it means for a conversation, its rows and its events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from events import vocabulary
from events.appending import Appending, answer, message_append, refusal
from events.errors import StillStreaming
from storage.append import (
    Append,
    Committed,
    ConversationChange,
    ImportProgress,
    Moved,
    NewEvent,
    NewMessage,
    WriteKey,
)
from storage.conversations import Conversations
from storage.database import Database
from storage.deed import SYSTEM, Deed
from storage.errors import MessageDeleted
from storage.idempotency import Answer
from storage.messages import Messages, VersionedMessage
from storage.records import (
    EMPTY_ARRAY,
    EMPTY_OBJECT,
    Message,
    Role,
    content_sha256,
    new_id,
    now,
    utf16_length,
)


class Draft(Struct, frozen=True):
    """A message as its author gives it. One with the status `streaming` has no content: its text follows."""

    role: Role
    content: str
    agent_id: str | None = None
    reply_to: str | None = None
    model: str | None = None
    tool_calls: Raw = EMPTY_ARRAY
    usage: Raw | None = None
    metadata: Raw = EMPTY_OBJECT
    status: Literal["streaming", "complete"] = "complete"


class Prepared(Struct, frozen=True):
    """A message of one conversation that is to be appended: its row, itself as its author is told, a template, and the
    event by which others are told."""

    row: NewMessage
    encoded: bytes
    event: NewEvent


class Batch(Struct, frozen=True):
    """Where an import's batch was stored."""

    first_position: int
    last_position: int
    as_of: int


class ConversationLog:
    """An answer means that the write is durable: now, or since its key came first.

    Refuses with `NotFound`, `UnknownAgent`, `UnknownReply`, `KeyReused`, `MessageDeleted` and `StillStreaming`; raises
    `StorageUnavailable` and its kinds for what may pass later. What streams is the matter of `StreamedMessages`.
    """

    def __init__(self, database: Database, appending: Appending, shipped_agents: frozenset[str]) -> None:
        self._appending = appending
        self._messages = Messages(database)
        self._conversations = Conversations(database)
        self._shipped_agents = shipped_agents

    async def post(
        self, tenant: str, conversation_id: str, drafts: Sequence[Draft], *, many: bool, key: WriteKey | None
    ) -> Answer:
        """201 with the message, or with `{"items": […]}` when `many`; all of them or none."""
        append = self._new_messages(tenant, conversation_id, drafts, now(), many=many, key=key)
        return answer(append, await self._appending.submit(append))

    async def post_batch(
        self,
        tenant: str,
        conversation_id: str,
        messages: Sequence[Prepared],
        at: datetime,
        *,
        key: WriteKey | None,
        progress: ImportProgress | None,
        follows: str | None = None,
    ) -> Batch | Moved:
        """A batch of an import, its messages prepared for this time `at`. `Moved` when its key stands at another line
        than `progress` begins with.

        With `follows`, a message that may be on its way itself, it may be sent before that one is committed: it is
        committed behind it, or refused with `UnknownReply` of that id.
        """
        append = self._append(tenant, conversation_id, messages, at, b"", key, progress, follows)
        outcome = await self._appending.submit(append)
        if isinstance(outcome, Moved):
            return outcome
        if not isinstance(outcome, Committed):
            raise refusal(outcome)
        count = len(messages)
        return Batch(outcome.position, outcome.position + count - 1, outcome.seq + count - 1)

    def _new_messages(
        self,
        tenant: str,
        conversation_id: str,
        drafts: Sequence[Draft],
        at: datetime,
        *,
        many: bool,
        key: WriteKey | None,
    ) -> Append:
        messages = [prepare(conversation_id, draft, at, rank) for rank, draft in enumerate(drafts)]
        body = b'{"items":[%b]}' % b",".join([each.encoded for each in messages]) if many else messages[0].encoded
        return self._append(tenant, conversation_id, messages, at, body, key)

    def _append(
        self,
        tenant: str,
        conversation_id: str,
        messages: Sequence[Prepared],
        at: datetime,
        answer: bytes,
        key: WriteKey | None,
        progress: ImportProgress | None = None,
        follows: str | None = None,
    ) -> Append:
        return Append(
            tenant,
            conversation_id,
            at,
            events=[
                each.event if each.event.rank == rank else msgspec.structs.replace(each.event, rank=rank)
                for rank, each in enumerate(messages)
            ],
            answer=answer,
            status=201,
            messages=[each.row for each in messages],
            key=key,
            progress=progress,
            follows=follows,
            shipped_agents=self._shipped_agents,
        )

    async def edit(
        self, tenant: str, message_id: str, *, content: str | None, metadata: Raw | None, key: WriteKey | None
    ) -> Answer:
        """200 with the message as it is now. What is None stays as it was."""

        def change(found: VersionedMessage) -> Append:
            before = found.message
            if before.status == "deleted":
                raise MessageDeleted
            if before.status == "streaming":
                raise StillStreaming
            text = before.content if content is None else content
            after = msgspec.structs.replace(
                before,
                content=text,
                length=utf16_length(text),
                sha256=content_sha256(text),
                metadata=before.metadata if metadata is None else metadata,
                updated_at=now(),
            )
            return message_append(tenant, found.last_seq, after, vocabulary.MESSAGE_UPDATED, 200, key)

        return await self._change_message(tenant, message_id, change, key)

    async def delete(self, tenant: str, message_id: str, *, key: WriteKey | None, by: str = SYSTEM) -> Answer:
        """204. The message keeps its position, without its text; so do its events in the log. Again: 204."""

        def change(found: VersionedMessage) -> Append | Answer:
            before = found.message
            if before.status == "deleted" and key is None:
                return Answer(204, b"")
            after = msgspec.structs.replace(
                before,
                content="",
                status="deleted",
                length=0,
                sha256=content_sha256(""),
                model=None,
                tool_calls=EMPTY_ARRAY,
                usage=None,
                metadata=EMPTY_OBJECT,
                updated_at=now(),
            )
            deed = None if before.status == "deleted" else Deed(by, "message.delete", message_id)
            return message_append(tenant, found.last_seq, after, vocabulary.MESSAGE_DELETED, 204, key, deed)

        return await self._change_message(tenant, message_id, change, key)

    async def _change_message(
        self,
        tenant: str,
        message_id: str,
        change: Callable[[VersionedMessage], Append | Answer],
        key: WriteKey | None,
    ) -> Answer:
        async def read() -> Append | Answer:
            return change(await self._messages.get_versioned(tenant, message_id))

        with self._appending.precedence.of_change(message_id):
            return await self._appending.until_not_stale(tenant, key, read)

    async def update_conversation(
        self,
        tenant: str,
        conversation_id: str,
        *,
        title: str | UnsetType | None,
        metadata: Raw | UnsetType,
        key: WriteKey | None,
    ) -> Answer:
        """200 with the conversation as of this change. What is `UNSET` stays as it was."""

        async def read() -> Append:
            found = await self._conversations.get_versioned(tenant, conversation_id)
            at = now()
            after = msgspec.structs.replace(
                found.conversation,
                title=found.conversation.title if title is UNSET else title,
                metadata=found.conversation.metadata if metadata is UNSET else metadata,
                message_count=vocabulary.OPEN_POSITION,
                as_of=vocabulary.OPEN_SEQ,
                updated_at=at,
                last_activity_at=at,
            )
            encoded = vocabulary.encode_record(after)
            return Append(
                tenant,
                conversation_id,
                at,
                events=[vocabulary.conversation_event(vocabulary.CONVERSATION_UPDATED, encoded)],
                answer=encoded,
                status=200,
                key=key,
                conversation=ConversationChange(found.state_seq, after.title, bytes(after.metadata).decode()),
            )

        return await self._appending.until_not_stale(tenant, key, read)

    async def delete_conversation(
        self, tenant: str, conversation_id: str, *, key: WriteKey | None, by: str = SYSTEM
    ) -> Answer:
        """204. Its readers learn of it, and nobody finds it any more."""

        async def read() -> Append:
            found = await self._conversations.get_versioned(tenant, conversation_id)
            at = now()
            after = msgspec.structs.replace(
                found.conversation,
                title=None,
                metadata=EMPTY_OBJECT,
                message_count=vocabulary.OPEN_POSITION,
                as_of=vocabulary.OPEN_SEQ,
                updated_at=at,
                last_activity_at=at,
            )
            return Append(
                tenant,
                conversation_id,
                at,
                events=[
                    vocabulary.conversation_event(vocabulary.CONVERSATION_DELETED, vocabulary.encode_record(after))
                ],
                answer=b"",
                status=204,
                key=key,
                conversation=ConversationChange(found.state_seq, None, "{}", deleted=True),
                deed=Deed(by, "conversation.delete", conversation_id),
            )

        return await self._appending.until_not_stale(tenant, key, read)


def prepare(conversation_id: str, draft: Draft, at: datetime, rank: int = 0) -> Prepared:
    """The message that the draft becomes when it is appended as of `at`, probably as the append's `rank`th, from 0."""
    message = _message(conversation_id, draft, at)
    encoded = vocabulary.encode_record(message)
    event = vocabulary.message_event(vocabulary.MESSAGE_CREATED, message.id, encoded, rank)
    return Prepared(vocabulary.message_row(message), encoded, event)


def _message(conversation_id: str, draft: Draft, at: datetime) -> Message:
    streams = draft.status == "streaming"
    return Message(
        id=new_id(),
        conversation_id=conversation_id,
        position=vocabulary.OPEN_POSITION,
        role=draft.role,
        agent_id=draft.agent_id,
        run_id=None,
        content=draft.content,
        status=draft.status,
        reply_to=draft.reply_to,
        model=draft.model,
        tool_calls=draft.tool_calls,
        usage=draft.usage,
        metadata=draft.metadata,
        length=None if streams else utf16_length(draft.content),
        sha256=None if streams else content_sha256(draft.content),
        created_at=at,
        updated_at=at,
    )
