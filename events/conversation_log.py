"""Every write that takes a seq: what it means for a conversation, its rows and its events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from events import vocabulary
from storage.append import (
    Append,
    Committed,
    ConversationChange,
    ImportProgress,
    MessageChange,
    Moved,
    Outcome,
    Refused,
    Seen,
    Stale,
    WriteKey,
    fill_answer,
)
from storage.conversations import Conversations
from storage.database import Database
from storage.errors import Contended, KeyReused, MessageDeleted, NotFound, UnknownAgent, UnknownReply
from storage.group_commit import GroupCommit
from storage.idempotency import Answer, Keys
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

_ATTEMPTS = 20  # of a change that others keep overtaking


class Draft(Struct, frozen=True):
    """A message as its author gives it."""

    role: Role
    content: str
    agent_id: str | None = None
    reply_to: str | None = None
    model: str | None = None
    tool_calls: Raw = EMPTY_ARRAY
    usage: Raw | None = None
    metadata: Raw = EMPTY_OBJECT


class Batch(Struct, frozen=True):
    """Where an import's batch was stored."""

    first_position: int
    last_position: int
    as_of: int


class ConversationLog:
    """An answer means that the write is durable: now, or since its key came first.

    Refuses with `NotFound`, `UnknownAgent`, `UnknownReply`, `KeyReused` and `MessageDeleted`; raises
    `StorageUnavailable` and its kinds for what may pass later.
    """

    def __init__(self, database: Database, commits: GroupCommit, shipped_agents: frozenset[str]) -> None:
        self._commits = commits
        self._messages = Messages(database)
        self._conversations = Conversations(database)
        self._keys = Keys(database)
        self._shipped_agents = shipped_agents

    async def post(
        self, tenant: str, conversation_id: str, drafts: Sequence[Draft], *, many: bool, key: WriteKey | None
    ) -> Answer:
        """201 with the message, or with `{"items": […]}` when `many`; all of them or none."""
        append = self._new_messages(tenant, conversation_id, drafts, now(), many=many, key=key)
        return _answer(append, await self._commits.submit(append))

    async def post_batch(
        self,
        tenant: str,
        conversation_id: str,
        drafts: Sequence[Draft],
        *,
        key: WriteKey | None,
        progress: ImportProgress | None,
    ) -> Batch | Moved:
        """A batch of an import. `Moved` when its key stands at another line than `progress` begins with."""
        append = self._new_messages(
            tenant, conversation_id, drafts, now(), many=True, key=key, progress=progress, answered=False
        )
        outcome = await self._commits.submit(append)
        if isinstance(outcome, Moved):
            return outcome
        if not isinstance(outcome, Committed):
            raise _refusal(outcome)
        count = len(drafts)
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
        progress: ImportProgress | None = None,
        answered: bool = True,
    ) -> Append:
        messages = [_message(conversation_id, draft, at) for draft in drafts]
        encoded = [vocabulary.encode_record(message) for message in messages]
        answer = b""
        if answered:
            answer = b'{"items":[%b]}' % b",".join(encoded) if many else encoded[0]
        return Append(
            tenant,
            conversation_id,
            at,
            events=[
                vocabulary.message_event(vocabulary.MESSAGE_CREATED, message.id, text, rank)
                for rank, (message, text) in enumerate(zip(messages, encoded, strict=True))
            ],
            answer=answer,
            status=201,
            messages=[vocabulary.message_row(message) for message in messages],
            key=key,
            progress=progress,
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
            text = before.content if content is None else content
            after = msgspec.structs.replace(
                before,
                content=text,
                length=utf16_length(text),
                sha256=content_sha256(text),
                metadata=before.metadata if metadata is None else metadata,
                updated_at=now(),
            )
            return _message_append(tenant, found.last_seq, after, vocabulary.MESSAGE_UPDATED, 200, key)

        return await self._change_message(tenant, message_id, change, key)

    async def delete(self, tenant: str, message_id: str, *, key: WriteKey | None) -> Answer:
        """204. The message keeps its position, without its text; so do its events in the log. Again: 204."""

        def change(found: VersionedMessage) -> Append | None:
            before = found.message
            if before.status == "deleted" and key is None:
                return None
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
            return _message_append(tenant, found.last_seq, after, vocabulary.MESSAGE_DELETED, 204, key)

        return await self._change_message(tenant, message_id, change, key)

    async def _change_message(
        self,
        tenant: str,
        message_id: str,
        change: Callable[[VersionedMessage], Append | None],
        key: WriteKey | None,
    ) -> Answer:
        async def read() -> Append | None:
            return change(await self._messages.get_versioned(tenant, message_id))

        return await self._until_not_stale(tenant, key, read)

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

        return await self._until_not_stale(tenant, key, read)

    async def delete_conversation(self, tenant: str, conversation_id: str, *, key: WriteKey | None) -> Answer:
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
            )

        return await self._until_not_stale(tenant, key, read)

    async def _until_not_stale(
        self, tenant: str, key: WriteKey | None, read: Callable[[], Awaitable[Append | None]]
    ) -> Answer:
        """Reads, decides, and commits if nobody else did meanwhile; else again."""
        for _ in range(_ATTEMPTS):
            try:
                append = await read()
            except (NotFound, MessageDeleted):
                # It may be this very request, sent again, that made it so.
                known = None if key is None else await self._keys.find(tenant, key)
                if known is None:
                    raise
                # What comes this way changes something that is there and makes no messages: see `_first_number`.
                return Answer(known.status, fill_answer(known.answer, known.seq, known.position - 1), replayed=True)
            if append is None:
                return Answer(204, b"")
            outcome = await self._commits.submit(append)
            if not isinstance(outcome, Stale):
                return _answer(append, outcome)
        raise Contended("others kept changing it")


def _message(conversation_id: str, draft: Draft, at: datetime) -> Message:
    return Message(
        id=new_id(),
        conversation_id=conversation_id,
        position=vocabulary.OPEN_POSITION,
        role=draft.role,
        agent_id=draft.agent_id,
        run_id=None,
        content=draft.content,
        status="complete",
        reply_to=draft.reply_to,
        model=draft.model,
        tool_calls=draft.tool_calls,
        usage=draft.usage,
        metadata=draft.metadata,
        length=utf16_length(draft.content),
        sha256=content_sha256(draft.content),
        created_at=at,
        updated_at=at,
    )


def _message_append(tenant: str, expected: int, after: Message, kind: str, status: int, key: WriteKey | None) -> Append:
    encoded = vocabulary.encode_record(after)
    event = vocabulary.message_event(kind, after.id, encoded)
    row = vocabulary.message_row(after)
    return Append(
        tenant,
        after.conversation_id,
        after.updated_at,
        events=[event],
        answer=encoded if status != 204 else b"",
        status=status,
        key=key,
        change=MessageChange(
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
            tombstone=event.payload.decode() if kind == vocabulary.MESSAGE_DELETED else None,
        ),
    )


def _answer(append: Append, outcome: Outcome) -> Answer:
    match outcome:
        case Committed(seq, position):
            return Answer(append.status, fill_answer(append.answer, seq, _first_number(append, position)))
        case Seen(status, answer, seq, position):
            return Answer(status, fill_answer(answer, seq, _first_number(append, position)), replayed=True)
        case _:
            raise _refusal(outcome)


def _refusal(outcome: Outcome) -> Exception:
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


def _first_number(append: Append, position: int) -> int:
    """What the first `POSITION` of the answer stands for: a conversation's answer has its count of messages there."""
    return position if append.messages else position - 1
