"""Messages: posted, read one by one, edited, deleted."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct

from events.conversation_log import Draft
from handlers import imports, requests, shapes
from handlers.drafts import check_content, draft
from handlers.free_form import METADATA_BYTES, compact
from handlers.kinds import CONFLICT, NOT_FOUND, UNAVAILABLE
from handlers.media_type import NDJSON
from handlers.problem import Fault, invalid
from handlers.resources import LOG, MESSAGES, REQUESTS
from handlers.route import Call, Reply, Route
from storage.errors import UnknownAgent, UnknownReply
from storage.records import Message

_ONE = "/api/messages/{message_id}"

# Where a message's id is in its JSON, which `storage.records.Message` begins with.
_ID = slice(len(b'{"id":"'), len(b'{"id":"') + 36)


class _Page(Struct, frozen=True):
    items: list[Message]
    next: str | None


async def post_messages(call: Call[Any, requests.PostedMessage | list[requests.PostedMessage]]) -> Reply:
    if call.media_type == NDJSON:
        return await imports.import_messages(call)
    limits = call.resource(REQUESTS)
    many = isinstance(call.body, list)
    if isinstance(call.body, list):
        drafts = [draft(posted, limits, f"/{n}") for n, posted in enumerate(call.body)]
    else:
        drafts = [draft(call.body, limits)]
    try:
        answer = await call.resource(LOG).post(
            call.tenant, call.params["conversation_id"], drafts, many=many, key=call.key
        )
    except UnknownAgent as error:
        raise invalid(
            Fault("there is no such agent", pointer=f"{_place(drafts, many, agent_id=error.agent_id)}/agent_id")
        ) from None
    except UnknownReply as error:
        raise invalid(
            Fault(
                "there is no such message in this conversation",
                pointer=f"{_place(drafts, many, reply_to=error.message_id)}/reply_to",
            )
        ) from None
    if many:
        return Reply.of(answer)
    # It is the answer's first member: to parse all of it would cost more than to store it did.
    message_id = answer.body[_ID].decode()
    return Reply.of(answer, {"Location": f"/api/messages/{message_id}"})


def _place(drafts: list[Draft], many: bool, *, agent_id: str | None = None, reply_to: str | None = None) -> str:
    """The pointer to the first message that names the one or the other."""
    if not many:
        return ""
    for n, candidate in enumerate(drafts):
        if (agent_id is not None and candidate.agent_id == agent_id) or (
            reply_to is not None and candidate.reply_to == reply_to
        ):
            return f"/{n}"
    return ""


async def newest_messages(call: Call[requests.PageQuery, None]) -> Reply:
    items, cursor = await call.resource(MESSAGES).newest(call.tenant, call.query.limit, call.query.cursor)
    return Reply(_Page(items, cursor))


async def get_message(call: Call[Any, None]) -> Reply:
    return Reply(await call.resource(MESSAGES).get(call.tenant, call.params["message_id"]))


async def edit_message(call: Call[Any, requests.MessageEdit]) -> Reply:
    content, metadata, limits = call.body.content, call.body.metadata, call.resource(REQUESTS)
    if content is UNSET and metadata is UNSET:
        raise invalid(Fault("names neither content nor metadata", pointer=""))
    if content is not UNSET:
        check_content(content, "", limits.max_content)
    answer = await call.resource(LOG).edit(
        call.tenant,
        call.params["message_id"],
        content=None if content is UNSET else content,
        metadata=None if metadata is UNSET else compact(metadata, "/metadata", METADATA_BYTES, limits.max_depth),
        key=call.key,
    )
    return Reply.of(answer)


async def delete_message(call: Call[Any, None]) -> Reply:
    log, message_id = call.resource(LOG), call.params["message_id"]
    return Reply.of(await log.delete(call.tenant, message_id, key=call.key, by=call.principal))


ROUTES = (
    Route(
        method="POST",
        path="/api/conversations/{conversation_id}/messages",
        handler=post_messages,
        summary="Post one message, an array of messages (all or none), or import NDJSON of any length",
        description="A message with the status `streaming` is opened without content: its text follows as deltas (see"
        " below), until it is finished. An import takes whole messages alone.",
        tag="Messages",
        body=requests.PostedMessages,
        example={"role": "user", "content": "Is the login fixed?"},
        streamed=(NDJSON,),
        response=(shapes.Message, shapes.MessageItems),
        status=201,
        also={200: imports.ImportResult},
        headers={"Location": "Where the message is; not there for an array."},
        problems=(NOT_FOUND, UNAVAILABLE),
    ),
    Route(
        method="GET",
        path="/api/messages",
        handler=newest_messages,
        summary="The newest messages over all conversations",
        tag="Messages",
        query=requests.PageQuery,
        response=shapes.MessagePage,
        problems=(UNAVAILABLE,),
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=get_message,
        summary="One message",
        tag="Messages",
        response=shapes.Message,
        problems=(NOT_FOUND, UNAVAILABLE),
    ),
    Route(
        method="PATCH",
        path=_ONE,
        handler=edit_message,
        summary="Edit a message's content or metadata",
        tag="Messages",
        body=requests.SomeMessageEdit,
        response=shapes.Message,
        problems=(NOT_FOUND, CONFLICT, UNAVAILABLE),
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=delete_message,
        summary="Delete a message's text; it keeps its position",
        tag="Messages",
        status=204,
        problems=(NOT_FOUND, UNAVAILABLE),
    ),
)
