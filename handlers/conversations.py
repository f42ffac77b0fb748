"""Conversations: made, listed, read, changed, deleted."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct

from handlers import requests, shapes
from handlers.free_form import METADATA_BYTES, compact
from handlers.kinds import NOT_FOUND, UNAVAILABLE
from handlers.problem import Fault, invalid
from handlers.resources import CONVERSATIONS, HUB, LOG, REQUESTS
from handlers.route import Call, Reply, Route
from storage.records import Conversation

_COLLECTION = "/api/conversations"
_ONE = "/api/conversations/{conversation_id}"


class _Page(Struct, frozen=True):
    items: list[Conversation]
    next: str | None


class _Identified(Struct, frozen=True):
    id: str


async def list_conversations(call: Call[requests.PageQuery, None]) -> Reply:
    items, cursor = await call.resource(CONVERSATIONS).page(call.tenant, call.query.limit, call.query.cursor)
    return Reply(_Page(items, cursor))


async def create_conversation(call: Call[Any, requests.NewConversation]) -> Reply:
    metadata = compact(call.body.metadata, "/metadata", METADATA_BYTES, call.resource(REQUESTS).max_depth)
    answer = await call.resource(CONVERSATIONS).create(call.tenant, call.body.title, metadata, call.key)
    made = msgspec.json.decode(answer.body, type=_Identified)
    call.resource(HUB).touch(call.tenant, made.id)  # it takes no seq, so no commit of the log tells of it
    return Reply.of(answer, {"Location": f"{_COLLECTION}/{made.id}"})


async def get_conversation(call: Call[Any, None]) -> Reply:
    return Reply(await call.resource(CONVERSATIONS).get(call.tenant, call.params["conversation_id"]))


async def edit_conversation(call: Call[Any, requests.ConversationEdit]) -> Reply:
    title, metadata, depth = call.body.title, call.body.metadata, call.resource(REQUESTS).max_depth
    if title is UNSET and metadata is UNSET:
        raise invalid(Fault("names neither title nor metadata", pointer=""))
    answer = await call.resource(LOG).update_conversation(
        call.tenant,
        call.params["conversation_id"],
        title=title,
        metadata=UNSET if metadata is UNSET else compact(metadata, "/metadata", METADATA_BYTES, depth),
        key=call.key,
    )
    return Reply.of(answer)


async def delete_conversation(call: Call[Any, None]) -> Reply:
    log, conversation_id = call.resource(LOG), call.params["conversation_id"]
    return Reply.of(await log.delete_conversation(call.tenant, conversation_id, key=call.key, by=call.principal))


ROUTES = (
    Route(
        method="GET",
        path=_COLLECTION,
        handler=list_conversations,
        summary="Conversations, the latest active first",
        tag="Conversations",
        query=requests.PageQuery,
        response=shapes.ConversationPage,
        problems=(UNAVAILABLE,),
    ),
    Route(
        method="POST",
        path=_COLLECTION,
        handler=create_conversation,
        summary="Make a conversation",
        tag="Conversations",
        body=requests.NewConversation,
        example={"title": "Release 2.0", "metadata": {"project": "swarm"}},
        response=shapes.Conversation,
        status=201,
        headers={"Location": "Where the conversation is."},
        problems=(UNAVAILABLE,),
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=get_conversation,
        summary="One conversation",
        tag="Conversations",
        response=shapes.Conversation,
        problems=(NOT_FOUND, UNAVAILABLE),
    ),
    Route(
        method="PATCH",
        path=_ONE,
        handler=edit_conversation,
        summary="Change a conversation's title or metadata",
        tag="Conversations",
        body=requests.SomeConversationEdit,
        response=shapes.Conversation,
        problems=(NOT_FOUND, UNAVAILABLE),
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=delete_conversation,
        summary="Delete a conversation",
        tag="Conversations",
        status=204,
        problems=(NOT_FOUND, UNAVAILABLE),
    ),
)
