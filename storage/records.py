"""The records that storage keeps and gives back, in the shapes that they have on the wire.

JSON columns stay text (`msgspec.Raw`) from the row to the socket: nothing parses them on the way.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Literal

from msgspec import Raw, Struct
from uuid_utils import uuid7

Role = Literal["user", "agent", "system", "tool"]
Status = Literal["streaming", "complete", "failed", "cancelled", "deleted"]
RunStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]

EMPTY_OBJECT = Raw(b"{}")
EMPTY_ARRAY = Raw(b"[]")


class Message(Struct, frozen=True):
    """One message of a conversation, whole.

    `position` counts 1, 2, 3 … without holes. It is `Raw` only in a template: a message that is being appended learns
    its position inside the transaction (see `storage.append`). `length` counts UTF-16 code units, `sha256` is the
    lower hex of the content's UTF-8; both are null until the message is finished.
    """

    id: str
    conversation_id: str
    position: int | Raw
    role: Role
    agent_id: str | None
    run_id: str | None
    content: str
    status: Status
    reply_to: str | None
    model: str | None
    tool_calls: Raw
    usage: Raw | None
    metadata: Raw
    length: int | None
    sha256: str | None
    created_at: datetime
    updated_at: datetime


class Conversation(Struct, frozen=True):
    """A conversation as of seq `as_of`."""

    id: str
    title: str | None
    metadata: Raw
    message_count: int | Raw
    as_of: int | Raw
    created_at: datetime
    updated_at: datetime
    last_activity_at: datetime


class Run(Struct, frozen=True):
    """An agent answering in a conversation. `message_id` is the message that it writes, once there is one."""

    id: str
    conversation_id: str
    agent_id: str
    state: RunStatus
    message_id: str | None
    attempt: int
    error: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class Version(Struct, frozen=True):
    """What a conversation is at: two reads of it that found the same have seen the same.

    Seqs are issued a second time after a backup was restored, under another epoch.
    """

    epoch: str
    last_seq: int


class Window(Struct, frozen=True):
    """A run of messages by position, as JSON, with `total` and `version` from the same snapshot as the rows."""

    items: bytes
    """An array."""
    digest: str
    """Of `items`: 128 bits, in hex."""
    first: int
    """The first message's position; 0 where there is none."""
    last: int
    settled: bool
    """Every message in it is finished, and there is one."""
    total: int
    version: Version

    @property
    def as_of(self) -> int:
        return self.version.last_seq


class LoggedEvent(Struct, frozen=True):
    """One event of the log.

    `payload` is the JSON object that was stored with it, without `conversation_id` and `seq`.
    """

    seq: int
    kind: str
    payload: bytes


class LogPage(Struct, frozen=True):
    """Events of one conversation, with its floor and head and the log's epoch from the same snapshot."""

    epoch: str
    floor: int
    head: int
    deleted: bool
    events: list[LoggedEvent]


class StateItem(Struct, frozen=True):
    """Something as it is now, and the seq that last touched it."""

    seq: int
    record: Message | Run | Conversation


class StatePage(Struct, frozen=True):
    """What was touched after a seq, in the order of the seqs that last did, from one snapshot.

    `complete` when that snapshot had nothing more: what the items say is then true as of `head`.
    """

    epoch: str
    floor: int
    head: int
    deleted: bool
    complete: bool
    items: list[StateItem]


class Head(Struct, frozen=True):
    """The log holds the events from `floor + 1` to `head`."""

    floor: int
    head: int


class Heads(Struct, frozen=True):
    """Conversations that are there, by id, and the log's epoch from the same snapshot."""

    epoch: str
    heads: dict[str, Head]


class Movement(Struct, frozen=True):
    """Conversations whose log ends at another seq than was thought, `(id, last seq)`, and the log's epoch.

    Both are from the same snapshot.
    """

    epoch: str
    moved: list[tuple[str, int]]


def new_id() -> str:
    """A UUIDv7 (RFC 9562): ordered by the time it was made."""
    return str(uuid7())


def now() -> datetime:
    return datetime.now(UTC)


def utf16_length(text: str) -> int:
    """What `String.length` gives a browser."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def content_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
