"""What clients get, as OpenAPI describes it.

What is served is `storage.records`, whose JSON columns stay text on the way: these are the same fields with the types
that are in that text. `tests/handlers` holds the two against each other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import Meta, Struct

from agents.agent import Agent
from handlers.requests import ToolCall
from storage.records import Role, Status

Cursor = Annotated[str, Meta(description="Give it as `cursor` to get the next page; null when there is none.")]

Seq = Annotated[int, Meta(ge=1, description="1, 2, 3 … without holes in its conversation.")]


class Message(Struct, frozen=True):
    """A message. Deleted, it keeps its position with empty content."""

    id: UUID
    conversation_id: UUID
    position: Annotated[int, Meta(ge=1, description="1, 2, 3 … without holes in its conversation.")]
    role: Role
    agent_id: str | None
    run_id: UUID | None
    content: str
    status: Status
    reply_to: UUID | None
    model: str | None
    tool_calls: list[ToolCall]
    usage: dict[str, Any] | None
    metadata: dict[str, Any]
    length: Annotated[int, Meta(description="The content's length in UTF-16 code units.")] | None
    sha256: Annotated[str, Meta(description="Of the content's UTF-8, in lower hex.")] | None
    created_at: datetime
    updated_at: datetime


class Conversation(Struct, frozen=True):
    """A conversation as of the event with seq `as_of`."""

    id: UUID
    title: str | None
    metadata: dict[str, Any]
    message_count: int
    as_of: Annotated[int, Meta(description="Open the conversation's stream with `after` this, and nothing is missed.")]
    created_at: datetime
    updated_at: datetime
    last_activity_at: datetime


class MessageWindow(Struct, frozen=True):
    """A run of messages by position, with its total and `as_of` from the same snapshot."""

    items: list[Message]
    total: int
    as_of: Annotated[int, Meta(description="Open the conversation's stream with `after` this, and nothing is missed.")]
    next: Annotated[int, Meta(description="Give it as `after` for what follows; null at the end.")] | None
    previous: Annotated[int, Meta(description="Give it as `before` for what comes before; null at the start.")] | None


class MessageItems(Struct, frozen=True):
    """The messages of a posted array, in its order."""

    items: list[Message]


class MessagePage(Struct, frozen=True):
    """Messages, newest first."""

    items: list[Message]
    next: Cursor | None


class ConversationPage(Struct, frozen=True):
    """Conversations, the latest active first."""

    items: list[Conversation]
    next: Cursor | None


class MessageEvent(Struct, frozen=True):
    """The data of an event about one message, which it carries whole."""

    conversation_id: UUID
    seq: Seq
    message: Message


class ConversationEvent(Struct, frozen=True):
    """The data of an event about the conversation itself."""

    conversation_id: UUID
    seq: Seq
    conversation: Conversation


class Ready(Struct, frozen=True):
    """The data of `ready`."""

    as_of: Annotated[int, Meta(description="Every event up to this seq has been sent.")]


class Reset(Struct, frozen=True):
    """The data of `reset`."""

    reason: Annotated[
        Literal["malformed", "epoch", "ahead"],
        Meta(description="The id is none of a Swarm, is of another timeline, or is of a seq that does not exist yet."),
    ]
    as_of: Annotated[int, Meta(description="The seq after which the stream goes on.")]


class Drain(Struct, frozen=True):
    """The data of `drain`."""

    reason: Annotated[
        Literal["shutdown", "unavailable", "error", "gone"],
        Meta(description="The server stops, its database is away, it failed, or the conversation was deleted."),
    ]


class AgentPage(Struct, frozen=True):
    """Agents by id."""

    items: list[Agent]
    next: Cursor | None
