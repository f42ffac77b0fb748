"""Messages whose text follows in deltas, as the layer above appends them, but for its retries."""

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Raw

from events.vocabulary import OPEN_POSITION, encode_record, message_event, message_row
from storage.append import Append, Committed, Delta, MessageChange, NewEvent, Outcome, RunState
from storage.messages import VersionedMessage
from storage.records import EMPTY_ARRAY, EMPTY_OBJECT, Message, Status, content_sha256, new_id, now, utf16_length
from tests.storage.store import TENANT, Store


@dataclass
class Stream:
    """A message that streams. `text` is what has been acknowledged; every write gives the outcome of its commit."""

    store: Store
    conversation: str
    id: str
    position: int
    text: str = field(default="")

    @property
    def length(self) -> int:
        return utf16_length(self.text)

    async def add(self, text: str, offset: int | None = None, tenant: str = TENANT) -> Outcome:
        """More text, after what there is, or said to begin at `offset`."""
        outcome = await self.store.commits.submit(self.delta(text, offset, tenant))
        if isinstance(outcome, Committed):
            self.text += text
        return outcome

    def delta(self, text: str, offset: int | None = None, tenant: str = TENANT) -> Append:
        begin = self.length if offset is None else offset
        payload = {"message_id": self.id, "position": self.position, "offset": begin, "text": text}
        return Append(
            tenant,
            self.conversation,
            now(),
            events=[NewEvent("message.delta", self.id, msgspec.json.encode(payload))],
            answer=b"",
            status=200,
            delta=Delta(self.id, begin, utf16_length(text)),
        )

    async def version(self) -> VersionedMessage:
        return await self.store.messages.get_versioned(TENANT, self.id)

    async def finish(self, found: VersionedMessage | None = None, status: Status = "complete") -> Outcome:
        """Finished as it was found: by default as it is now."""
        found = found or await self.version()
        text = found.message.content
        after = msgspec.structs.replace(
            found.message, status=status, length=utf16_length(text), sha256=content_sha256(text), updated_at=now()
        )
        kind = "completed" if status == "complete" else status
        return await self._change(found, after, message_event(f"message.{kind}", self.id, encode_record(after)))

    async def delete(self, found: VersionedMessage | None = None) -> Outcome:
        found = found or await self.version()
        after = msgspec.structs.replace(
            found.message, content="", status="deleted", length=0, sha256=content_sha256(""), updated_at=now()
        )
        event = message_event("message.deleted", self.id, encode_record(after))
        return await self._change(found, after, event, tombstone=event.payload.decode())

    async def call(self, tool_call: dict[str, Any], found: VersionedMessage | None = None) -> Outcome:
        """A tool was called: the message goes on streaming."""
        found = found or await self.version()
        calls = [*json.loads(bytes(found.message.tool_calls)), tool_call]
        after = msgspec.structs.replace(found.message, tool_calls=Raw(msgspec.json.encode(calls)), updated_at=now())
        payload = msgspec.json.encode({"message_id": self.id, "tool_call": tool_call})
        return await self._change(found, after, NewEvent("tool.called", self.id, payload))

    async def _change(
        self, found: VersionedMessage, after: Message, event: NewEvent, tombstone: str | None = None
    ) -> Outcome:
        row = message_row(after)
        change = MessageChange(
            self.id,
            found.last_seq,
            row.content,
            row.status,
            row.model,
            row.tool_calls,
            row.usage,
            row.metadata,
            row.length,
            row.sha256,
            tombstone,
        )
        append = Append(
            TENANT, self.conversation, after.updated_at, events=[event], answer=b"", status=200, change=change
        )
        return await self.store.commits.submit(append)


async def stream(store: Store, conversation: str) -> Stream:
    """A new message, of which nothing has come yet."""
    message = new_message(conversation)
    append = Append(
        TENANT,
        conversation,
        message.created_at,
        events=[message_event("message.created", message.id, encode_record(message))],
        answer=b"",
        status=201,
        messages=[message_row(message)],
    )
    outcome = await store.commits.submit(append)
    assert isinstance(outcome, Committed)
    return Stream(store, conversation, message.id, outcome.position)


def new_message(conversation: str) -> Message:
    at = now()
    return Message(
        id=new_id(),
        conversation_id=conversation,
        position=OPEN_POSITION,
        role="agent",
        agent_id=None,
        run_id=None,
        content="",
        status="streaming",
        reply_to=None,
        model=None,
        tool_calls=EMPTY_ARRAY,
        usage=None,
        metadata=EMPTY_OBJECT,
        length=None,
        sha256=None,
        created_at=at,
        updated_at=at,
    )


def run_append(conversation: str, run: RunState) -> Append:
    """A run that has come to its state."""
    payload = msgspec.json.encode({"run": run})
    return Append(
        TENANT,
        conversation,
        now(),
        events=[NewEvent(f"run.{run.state}", None, payload)],
        answer=b"",
        status=200,
        run=run,
    )


def new_run(**fields: Any) -> RunState:
    values: dict[str, Any] = {
        "id": new_id(),
        "agent_id": "general_01",
        "state": "queued",
        "message_id": None,
        "attempt": 1,
        "error": None,
        "created_at": now(),
        "started_at": None,
        "ended_at": None,
    }
    return RunState(**values | fields)
