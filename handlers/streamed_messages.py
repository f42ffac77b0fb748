"""Messages that are streamed into: an agent outside sends its own tokens, and says when they end."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from handlers import requests, shapes
from handlers.drafts import compact_calls
from handlers.free_form import METADATA_BYTES, compact
from handlers.kinds import CONFLICT, NOT_FOUND, UNAVAILABLE
from handlers.problem import Fault, invalid
from handlers.resources import REQUESTS, STREAMED
from handlers.route import Call, Reply, Route
from storage.records import utf16_length


async def append_delta(call: Call[Any, requests.MessageDelta]) -> Reply:
    offset, text = call.body.offset, call.body.text
    most = call.resource(REQUESTS).max_content
    if offset + utf16_length(text) > most:
        raise invalid(Fault(f"makes the text longer than {most} UTF-16 code units", pointer="/text"))
    return Reply.of(
        await call.resource(STREAMED).append_delta(call.tenant, call.params["message_id"], offset, text, call.key)
    )


async def finish_message(call: Call[Any, requests.MessageEnd]) -> Reply:
    body, depth = call.body, call.resource(REQUESTS).max_depth
    answer = await call.resource(STREAMED).finish(
        call.tenant,
        call.params["message_id"],
        body.status,
        usage=UNSET if body.usage is UNSET else compact(body.usage, "/usage", METADATA_BYTES, depth),
        model=body.model,
        tool_calls=UNSET if body.tool_calls is UNSET else compact_calls(body.tool_calls, "/tool_calls", depth),
        key=call.key,
    )
    return Reply.of(answer)


ROUTES = (
    Route(
        method="POST",
        path="/api/messages/{message_id}/deltas",
        handler=append_delta,
        summary="Append to a streaming message's text",
        tag="Messages",
        body=requests.MessageDelta,
        example={"offset": 120, "text": " world"},
        response=shapes.MessageLength,
        problems=(NOT_FOUND, CONFLICT, UNAVAILABLE),
        members={409: shapes.DeltaConflict},
        description="The message was posted with the status `streaming`. `offset` is the `length` of the text so far:"
        " with it a delta is safe to repeat, and of one that is there already, or in part, only the rest is appended."
        " One that leaves a gap, or differs from what is there, is 409, and so is one after the end."
        "\n\n"
        "A message that gets no delta for a while (`SWARM_STREAM_IDLE`) becomes `failed`, its text kept.",
    ),
    Route(
        method="POST",
        path="/api/messages/{message_id}/finish",
        handler=finish_message,
        summary="End a streaming message",
        tag="Messages",
        body=requests.MessageEnd,
        example={"status": "complete", "usage": {"output_tokens": 421}},
        response=shapes.Message,
        problems=(NOT_FOUND, CONFLICT, UNAVAILABLE),
        members={409: shapes.EndConflict},
        description="Repeated with the status that the message has, it answers with the message as it is; with another"
        " one it is 409.",
    ),
)
