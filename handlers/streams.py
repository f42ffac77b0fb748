"""`GET /api/conversations/{id}/events`: the stream of one conversation."""

from __future__ import annotations

import asyncio
from typing import Annotated

from aiohttp import HttpVersion11, web
from msgspec import Meta, Struct

from events.channel import Channel
from events.event_id import EventId, parse_event_id
from events.frame import drain_frame, reset_frame, retry_frame
from events.hub import Hub
from events.subscriber import Subscriber
from handlers import shapes
from handlers.kinds import NOT_FOUND
from handlers.problem import Fault, invalid
from handlers.resources import HUB
from handlers.route import HANDED_OVER, Call, Route
from storage.errors import StorageUnavailable

MEDIA_TYPE = "text/event-stream"

# Never compressed, never transformed, never held back: an event is worth what its delay leaves of it.
_HEADERS = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
_SEQ_DIGITS = 16


class StreamQuery(Struct, frozen=True):
    """Where to begin: after a seq or an event's id, 0 from the start; without it, and without the header, from now."""

    after: (
        Annotated[
            str,
            Meta(
                max_length=64,
                description="A seq, such as a window's `as_of`, or the id of an event. 0 is from the start; without it,"
                " and without `Last-Event-ID`, the stream begins now.",
            ),
        ]
        | None
    ) = None


async def stream(call: Call[StreamQuery, None]) -> web.StreamResponse:
    """Subscribes first, then replays, then goes live: what is committed in between is not missed."""
    request = call.request
    hub: Hub = call.resource(HUB)
    asked = _asked(request, call.query)
    if hub.draining:
        return _come_back("shutdown")
    try:
        # From here on the channel hears of every commit. Only then is it decided where the reader stands.
        channel = await hub.watch(call.tenant, call.params["conversation_id"])
        position, reset = await _place(hub, channel, asked)
    except StorageUnavailable:
        # An EventSource that is answered with an error closes for good.
        return _come_back("unavailable")
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    ready_at = max(position, channel.last_seq)
    subscriber = Subscriber(hub, channel, position, ready_at, chunked=request.version >= HttpVersion11)
    if _hand_over(request, subscriber):
        subscriber.write(retry_frame() + (reset_frame(reset, position) if reset else b""))
        # The pump gives it what lies after its position, from the log or from the ring, and what comes.
        hub.attach(subscriber)
    return response


class Malformed(Struct, frozen=True):
    """A `Last-Event-ID` that no server of ours has issued."""


def _asked(request: web.Request, query: StreamQuery) -> EventId | int | Malformed | None:
    """Where the reader wants to begin. An `EventSource` sends both when it reconnects: the header is the newer one.

    Raises 422 for a malformed `after`, which a developer can mend; a malformed header gets a `reset`.
    """
    header = request.headers.get("Last-Event-ID")
    if header:
        return parse_event_id(header) or Malformed()
    text = query.after
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= _SEQ_DIGITS:
        return int(text)
    event_id = parse_event_id(text)
    if event_id is None:
        raise invalid(Fault("must be a seq, or the id of an event", parameter="after"))
    return event_id


async def _place(hub: Hub, channel: Channel, asked: EventId | int | Malformed | None) -> tuple[int, str | None]:
    """The seq after which the reader goes on, and why what it holds is void, if it is."""
    reason = None
    if isinstance(asked, Malformed):
        reason = "malformed"
    elif isinstance(asked, EventId) and asked.epoch != hub.epoch:
        reason = "epoch"
    elif asked is not None:
        seq = asked.seq if isinstance(asked, EventId) else asked
        # Another process may have issued it a moment ago. What not even the database has is of another timeline.
        if seq <= channel.last_seq or seq <= await hub.head(channel):
            return seq, None
        reason = "ahead"
    return channel.last_seq, reason


def _hand_over(request: web.Request, subscriber: Subscriber) -> bool:
    """Makes the subscriber the connection's own protocol, and lets go of aiohttp's handler, task, parser and request.

    False when the client has gone meanwhile.
    """
    protocol, transport = request.protocol, request.transport
    if transport is None or transport.is_closing():
        return False
    transport.set_protocol(subscriber)
    subscriber.connection_made(transport)
    if not transport.is_reading():
        transport.resume_reading()  # or a client that goes away would not be noticed
    # For aiohttp the connection is lost. It must not hear of that before it has seen this handler return: it would
    # cancel it.
    request[HANDED_OVER] = True
    protocol.transport = None
    asyncio.get_running_loop().call_soon(protocol.connection_lost, None)
    return True


def _come_back(reason: str) -> web.Response:
    """A stream that ends at once and says why."""
    return web.Response(body=drain_frame(reason) + retry_frame(), headers=_HEADERS)


_DESCRIPTION = (
    "Server-Sent Events, for an `EventSource` or any other reader. First come the events after the place that was asked"
    " for, then `ready`, then each event as soon as it is stored: each once, in the order of `seq`."
    "\n\n"
    "An event's `id` is its seq and the log's epoch, `17@k3`. A reader that was cut reconnects with the last id it has"
    " in `Last-Event-ID` (an `EventSource` does so by itself) and misses nothing, however long it was away. `ready` has"
    " an id too; `reset`, `drain` and the comment `: ping` of a quiet stream have none. `retry` is how many"
    " milliseconds to wait before reconnecting."
    "\n\n"
    "To show a conversation: read a window, open the stream with `after` its `as_of`, and set the message of each event"
    " at its `position`. Events of messages outside the windows that a reader holds are of no concern to it. What was"
    " deleted is `message.deleted` in all its events: no replay shows the text again."
)
_EVENTS = {
    "message.created": (shapes.MessageEvent, "A message was posted."),
    "message.updated": (shapes.MessageEvent, "Its content or metadata was edited."),
    "message.deleted": (shapes.MessageEvent, "It was deleted: it keeps its position, its content is empty."),
    "conversation.updated": (shapes.ConversationEvent, "The title or the metadata was changed."),
    "conversation.deleted": (
        shapes.ConversationEvent,
        "The last one: the stream ends. An `EventSource` that reconnects gets 404, and closes.",
    ),
    "ready": (shapes.Ready, "All that was there has been sent; what follows happens now."),
    "reset": (
        shapes.Reset,
        "What the reader holds is of another timeline: it reads its windows anew; the stream goes on after `as_of`.",
    ),
    "drain": (shapes.Drain, "The stream ends, and the reader comes back after `retry` milliseconds."),
}
_SAMPLE = """\
retry: 1842

event: message.updated
data: {"conversation_id":"0197…","seq":17,"message":{"id":"0197…","position":9, …}}
id: 17@k3

event: ready
data: {"as_of":17}
id: 17@k3

: ping
"""

ROUTES = (
    Route(
        method="GET",
        path="/api/conversations/{conversation_id}/events",
        handler=stream,
        summary="Stream a conversation's events",
        tag="Streams",
        query=StreamQuery,
        media_type=MEDIA_TYPE,
        request_headers={"Last-Event-ID": "The id of the last event that the reader has. It wins over `after`."},
        problems=(NOT_FOUND,),
        head=False,
        description=_DESCRIPTION,
        events=_EVENTS,
        sample=_SAMPLE,
    ),
)
