"""The events of streams as OpenAPI shows them: each with the type of its data and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handlers import shapes

Described = Mapping[str, tuple[Any, str]]

CONVERSATION_EVENTS: Described = {
    "message.created": (
        shapes.MessageEvent,
        "A message was posted: whole, or with status `streaming`; then its text follows.",
    ),
    "message.delta": (shapes.DeltaEvent, "More of a streaming message's text: append it."),
    "message.completed": (
        shapes.MessageEvent,
        "A streaming message is finished. It brings the whole content, with which what was assembled can be verified.",
    ),
    "message.failed": (shapes.MessageEvent, "It ended before its time; the text so far is kept."),
    "message.cancelled": (shapes.MessageEvent, "It was cancelled; the text so far is kept."),
    "message.updated": (shapes.MessageEvent, "Its content or metadata was edited."),
    "message.deleted": (shapes.MessageEvent, "It was deleted: it keeps its position, its content is empty."),
    "message.snapshot": (
        shapes.MessageEvent,
        "Instead of events that the log does not have any more: the message as it is, a streaming one with its text.",
    ),
    "run.started": (shapes.RunEvent, "An agent has begun to answer."),
    "run.finished": (shapes.RunEvent, "It is done."),
    "run.failed": (shapes.RunEvent, "It failed; `error` says why."),
    "run.cancelled": (shapes.RunEvent, "It was cancelled."),
    "tool.called": (shapes.ToolEvent, "A tool is being called for a message: set it among its `tool_calls` by its id."),
    "tool.returned": (shapes.ToolEvent, "It has returned: the same, with the result."),
    "conversation.updated": (shapes.ConversationEvent, "The title or the metadata was changed."),
    "conversation.deleted": (
        shapes.ConversationEvent,
        "The last one. A conversation's stream ends with it; reconnecting is 404. Of several, the others go on.",
    ),
}
READY = (shapes.Ready, "All that was there has been sent; what follows happens now.")
RESET = (
    shapes.Reset,
    "What the reader holds is of another timeline: it reads its windows anew; the stream goes on after `as_of`.",
)
DRAIN = (shapes.Drain, "The stream ends, and the reader comes back after `retry` milliseconds.")

FEED_EVENTS: Described = {
    "feed.conversation": (shapes.FeedConversation, "A conversation is new, or changed: this is how it is now."),
    "feed.conversation.deleted": (shapes.GoneConversation, "It was deleted."),
}
MULTIPLEXED_EVENTS: Described = {
    **CONVERSATION_EVENTS,
    **FEED_EVENTS,
    "conversation.gone": (shapes.GoneConversation, "One of those asked for is not there (any more). The others go on."),
    "cursor": (
        shapes.Nothing,
        "Where the reader stands: its id is the seq of each conversation, in the order in which they were asked for.",
    ),
    "ready": (
        shapes.ManyReady,
        "All that was there has been sent. A reader of the feed reads its lists now, whenever this comes.",
    ),
    "reset": (
        shapes.ManyReset,
        "What the reader holds of these is of another timeline: it reads their windows anew, and goes on there.",
    ),
    "drain": DRAIN,
}
