"""What clients send: the bodies and the queries of all routes. A field that is not named here is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from handlers.config import CONTENT_BYTES
from handlers.free_form import METADATA_BYTES, TOOL_CALLS_BYTES
from handlers.paths import AGENT_ID
from storage.records import Role
from storage.windows import MAX_POSITION

# A text that comes in deltas may be as long, counted as they are: in UTF-16 code units.
CONTENT_UNITS = CONTENT_BYTES
# An array is one transaction, in which its conversation is locked; more than this is an import's work.
ARRAY_MESSAGES = 1_000
# What one page may cost the database, and a reader's memory.
PAGE_ITEMS = 500
_DEFAULT_ITEMS = 50

Title = Annotated[str, Meta(max_length=500)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Limit = Annotated[int, Meta(ge=1, le=PAGE_ITEMS, description="How many items at most.")]
Position = Annotated[int, Meta(ge=1, le=MAX_POSITION)]
Metadata = Annotated[
    dict[str, Any],
    Meta(
        description=f"Free-form, at most {METADATA_BYTES} bytes of JSON.",
        extra_json_schema={"x-maxBytes": METADATA_BYTES},
    ),
]
_PartOfCalls = Meta(extra_json_schema={"x-maxBytes": TOOL_CALLS_BYTES})
Content = Annotated[
    str,
    Meta(description=f"At most {CONTENT_BYTES} bytes of UTF-8.", extra_json_schema={"maxLength": CONTENT_BYTES}),
]


class ToolCall(Struct, frozen=True, forbid_unknown_fields=True):
    """A call of a tool, as the agent that made it tells it."""

    id: Name
    name: Name
    server: Name | None = None
    arguments: Annotated[dict[str, Any], _PartOfCalls] = {}
    result: Annotated[Any, _PartOfCalls] = None
    is_error: bool = False
    started_at: Annotated[datetime, Meta(tz=True)] | None = None
    ended_at: Annotated[datetime, Meta(tz=True)] | None = None


ToolCalls = Annotated[list[ToolCall], Meta(max_length=1_000, description=f"At most {TOOL_CALLS_BYTES} bytes of JSON.")]


class PostedMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """A message. One of role `agent` names its agent; one of role `user` has none.

    It is whole, or its status is `streaming`: then its content is empty or absent, and follows as deltas.
    """

    role: Role
    content: (
        Annotated[
            str,
            Meta(
                description=f"At most {CONTENT_BYTES} bytes of UTF-8. Required, unless the status is `streaming`.",
                extra_json_schema={"maxLength": CONTENT_BYTES},
            ),
        ]
        | UnsetType
    ) = UNSET
    agent_id: Annotated[str, Meta(pattern=f"^{AGENT_ID}$")] | None = None
    reply_to: UUID | None = None
    model: Name | None = None
    tool_calls: ToolCalls = []
    usage: Metadata | None = None
    metadata: Metadata = {}
    status: Literal["complete", "streaming"] = "complete"


PostedMessages = PostedMessage | Annotated[list[PostedMessage], Meta(min_length=1, max_length=ARRAY_MESSAGES)]


class MessageDelta(Struct, frozen=True, forbid_unknown_fields=True):
    """More of a streaming message's text. `offset` is where it begins, in UTF-16 code units of the whole text."""

    offset: Annotated[int, Meta(ge=0, le=CONTENT_UNITS)]
    text: Annotated[
        str,
        Meta(
            description=f"The message has at most {CONTENT_UNITS} UTF-16 code units with it.",
            extra_json_schema={"maxLength": CONTENT_UNITS},
        ),
    ]


class MessageEnd(Struct, frozen=True, forbid_unknown_fields=True):
    """How a streaming message ends. What is not given stays as it was posted."""

    status: Literal["complete", "failed", "cancelled"]
    usage: Metadata | UnsetType = UNSET
    model: Name | UnsetType = UNSET
    tool_calls: ToolCalls | UnsetType = UNSET


class MessageEdit(Struct, frozen=True, forbid_unknown_fields=True):
    """What is not given stays as it is; `metadata` is replaced as a whole."""

    content: Content | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


SomeMessageEdit = Annotated[MessageEdit, Meta(extra_json_schema={"minProperties": 1})]


class NewConversation(Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation without messages."""

    title: Title | None = None
    metadata: Metadata = {}


class ConversationEdit(Struct, frozen=True, forbid_unknown_fields=True):
    """What is not given stays as it is; `metadata` is replaced as a whole."""

    title: Title | UnsetType | None = UNSET
    metadata: Metadata | UnsetType = UNSET


SomeConversationEdit = Annotated[ConversationEdit, Meta(extra_json_schema={"minProperties": 1})]


class PageQuery(Struct, frozen=True):
    """A page of a list. `cursor` is the `next` of the page before."""

    limit: Limit = _DEFAULT_ITEMS
    cursor: Annotated[str, Meta(max_length=200, description="The `next` of the page before.")] | None = None


class WindowQuery(Struct, frozen=True, rename={"from_": "from"}):
    """A window of a conversation's messages: at most one of the four positions; without any, the newest messages."""

    from_: Annotated[Position, Meta(description="The window begins at this position.")] | None = None
    before: Annotated[Position, Meta(description="It ends just before this position.")] | None = None
    after: Annotated[int, Meta(ge=0, le=MAX_POSITION, description="It begins just after this position.")] | None = None
    around: (
        Annotated[Position, Meta(description="This position is in its middle, as far as there are others.")] | None
    ) = None
    limit: Limit = _DEFAULT_ITEMS
