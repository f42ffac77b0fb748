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
from storage.records import Role, RunStatus, Status

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


class MessageLength(Struct, frozen=True):
    """How much of a streaming message's text is stored."""

    length: Annotated[int, Meta(description="In UTF-16 code units: where the next delta begins.")]


class DeltaConflict(Struct, frozen=True):
    """What the problem says of the message that a delta does not continue."""

    length: Annotated[int, Meta(description="How much of its text is stored, in UTF-16 code units.")]
    message_status: Status


class EndConflict(Struct, frozen=True):
    """What the problem says of the message that has ended in another way."""

    message_status: Status


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


class DeltaEvent(Struct, frozen=True):
    """The data of `message.delta`."""

    conversation_id: UUID
    seq: Seq
    message_id: UUID
    position: int
    offset: Annotated[int, Meta(description="Where the text begins, in UTF-16 code units of the content.")]
    text: str


class Run(Struct, frozen=True):
    """An agent that answers."""

    id: UUID
    conversation_id: UUID
    agent_id: str
    state: RunStatus
    message_id: UUID | None
    attempt: int
    error: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class RunEvent(Struct, frozen=True):
    """The data of an event about a run, which it carries whole."""

    conversation_id: UUID
    seq: Seq
    run: Run


class ToolEvent(Struct, frozen=True):
    """The data of an event about a call of a tool."""

    conversation_id: UUID
    seq: Seq
    run_id: UUID | None
    message_id: UUID
    tool_call: ToolCall


class FeedConversation(Struct, frozen=True):
    """The data of `feed.conversation`."""

    conversation: Conversation


class GoneConversation(Struct, frozen=True):
    """The data of an event about a conversation that is not there."""

    conversation_id: str


class Nothing(Struct, frozen=True):
    """The data of an event that says it all by its id."""


class Ready(Struct, frozen=True):
    """The data of `ready`."""

    as_of: Annotated[int, Meta(description="Every event up to this seq has been sent.")]


ResetReason = Annotated[
    Literal["malformed", "epoch", "ahead"],
    Meta(description="The id is none of a Swarm, is of another timeline, or is of a seq that does not exist."),
]


class Reset(Struct, frozen=True):
    """The data of `reset`."""

    reason: ResetReason
    as_of: Annotated[int, Meta(description="The seq after which the stream goes on.")]


class ManyReady(Struct, frozen=True):
    """The data of `ready` where several conversations are followed."""

    as_of: Annotated[dict[str, int], Meta(description="By conversation: every event up to this seq has been sent.")]


class ManyReset(Struct, frozen=True):
    """The data of `reset` where several conversations are followed."""

    reason: ResetReason
    as_of: Annotated[dict[str, int], Meta(description="By conversation: the seq after which the stream goes on.")]


class Drain(Struct, frozen=True):
    """The data of `drain`."""

    reason: Annotated[
        Literal["shutdown", "unavailable", "error", "gone", "limit", "forgotten"],
        Meta(
            description="The server stops, its database is away, it failed, the conversation was deleted, a limit"
            " of streams or of requests is reached, or the server had just let go of the conversation."
        ),
    ]


class AgentPage(Struct, frozen=True):
    """Agents by id."""

    items: list[Agent]
    next: Cursor | None
