"""Posted messages, checked as wholes and made into the drafts that the log appends."""

from __future__ import annotations

from datetime import UTC

import msgspec
from msgspec import UNSET, Raw, structs

from events.conversation_log import Draft
from handlers.config import RequestConfig
from handlers.free_form import METADATA_BYTES, TOOL_CALLS_BYTES, compact
from handlers.problem import Fault, invalid
from handlers.requests import PostedMessage, ToolCall
from storage.records import EMPTY_ARRAY

# For whoever reads messages one by one, as an import does.
POSTED_MESSAGE = msgspec.json.Decoder(PostedMessage)


def draft(posted: PostedMessage, limits: RequestConfig, where: str = "") -> Draft:
    """The draft of one posted message, `where` its pointer in the body. Raises 422."""
    content = _content(posted, f"{where}/content")
    check_content(content, where, limits.max_content)
    if posted.role == "agent" and posted.agent_id is None:
        raise invalid(Fault("is required for the role agent", pointer=f"{where}/agent_id"))
    if posted.role == "user" and posted.agent_id is not None:
        raise invalid(Fault("must not be there for the role user", pointer=f"{where}/agent_id"))
    usage = None
    if posted.usage is not None:
        usage = compact(posted.usage, f"{where}/usage", METADATA_BYTES, limits.max_depth)
    return Draft(
        role=posted.role,
        content=content,
        agent_id=posted.agent_id,
        reply_to=None if posted.reply_to is None else str(posted.reply_to),
        model=posted.model,
        tool_calls=compact_calls(posted.tool_calls, f"{where}/tool_calls", limits.max_depth),
        usage=usage,
        metadata=compact(posted.metadata, f"{where}/metadata", METADATA_BYTES, limits.max_depth),
        status=posted.status,
    )


def _content(posted: PostedMessage, where: str) -> str:
    if posted.status == "streaming":
        if posted.content:
            raise invalid(Fault("must be empty: the text follows as deltas", pointer=where))
        return ""
    if posted.content is UNSET:
        raise invalid(Fault("is required", pointer=where))
    return posted.content


def check_content(content: str, where: str, most: int) -> None:
    """Raises 422 for a text of more than `most` bytes. Counted only where it could be."""
    if len(content) * 4 > most and len(content.encode()) > most:
        raise invalid(Fault(f"is more than {most} bytes of UTF-8", pointer=f"{where}/content"))


def compact_calls(calls: list[ToolCall], where: str, depth: int) -> Raw:
    """Calls of tools as they are stored, `where` their pointer in the body. Raises 422."""
    if not calls:
        return EMPTY_ARRAY
    return compact([_in_utc(call, f"{where}/{n}") for n, call in enumerate(calls)], where, TOOL_CALLS_BYTES, depth)


def _in_utc(call: ToolCall, where: str) -> ToolCall:
    try:
        return structs.replace(
            call,
            started_at=None if call.started_at is None else call.started_at.astimezone(UTC),
            ended_at=None if call.ended_at is None else call.ended_at.astimezone(UTC),
        )
    except OverflowError:  # the first and the last day of the calendar, in another zone
        raise invalid(Fault("has a time that UTC does not have", pointer=where)) from None
