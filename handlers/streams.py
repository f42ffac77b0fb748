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

    after: Annotated[str, Meta(max_length=64)] | None = None


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
    ),
)
