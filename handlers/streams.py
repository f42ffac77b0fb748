"""`GET /api/conversations/{id}/events`: the stream of one conversation."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from msgspec import Meta, Struct

from events.conversation_stream import ConversationStream
from events.event_id import parse_event_id
from events.hub import Hub
from handlers.event_stream import (
    MEDIA_TYPE,
    TicketParameter,
    come_back,
    is_chunked,
    open_stream,
    owner,
    turned_away,
    unavailable,
)
from handlers.kinds import NOT_FOUND
from handlers.places import Asked, Malformed, parse_after, place
from handlers.problem import Fault, invalid
from handlers.resources import HUB
from handlers.route import Call, Route
from handlers.stream_events import CONVERSATION_EVENTS, DRAIN, READY, RESET
from storage.errors import NotFound, StorageUnavailable


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
    ticket: TicketParameter = None


async def stream(call: Call[StreamQuery, None]) -> web.StreamResponse:
    """Subscribes first, then replays, then goes live: what is committed in between is not missed."""
    request, conversation_id = call.request, call.params["conversation_id"]
    hub: Hub = call.resource(HUB)
    asked = _asked(request, call.query)
    if not call.who.opens(conversation_id):
        raise NotFound("conversation")  # a ticket's holder is told no more than anybody
    refusal = turned_away(call, hub)
    if refusal is not None:
        return refusal
    try:
        # From here on the channel hears of every commit. Only then is it decided where the reader stands.
        channel = (await hub.watch(call.tenant, [conversation_id])).get(conversation_id)
        if channel is None:
            raise NotFound("conversation")
        position, reset = await place(hub, channel, asked)
    except StorageUnavailable:
        return come_back(hub, "unavailable")

    def begin(stream: ConversationStream) -> None:
        if reset is not None:
            [subscriber] = stream.subscribers
            hub.count_reset(subscriber)
            stream.reset(subscriber, reset)
        # The pump gives it what lies after its position, from the log or from the ring, and what comes.
        hub.attach(stream)

    made = ConversationStream(hub, owner(call), channel, position, chunked=is_chunked(request))
    return await open_stream(request, hub, made, begin)


def _asked(request: web.Request, query: StreamQuery) -> Asked:
    """Where the reader wants to begin. An `EventSource` sends both when it reconnects: the header is the newer one.

    Raises 422 for a malformed `after`, which a developer can mend; a malformed header gets a `reset`.
    """
    header = request.headers.get("Last-Event-ID")
    if header:
        return parse_event_id(header) or Malformed()
    if query.after is None:
        return None
    after = parse_after(query.after)
    if after is None:
        raise invalid(Fault("must be a seq, or the id of an event", parameter="after"))
    return after


_DESCRIPTION = (
    "Server-Sent Events, for an `EventSource` or any other reader. First come the events after the place that was asked"
    " for, then `ready`, then each event as soon as it is stored: each once, in the order of `seq`."
    "\n\n"
    "An event's `id` is its seq and the log's epoch, `17@k3`. A reader that was cut reconnects with the last id it has"
    " in `Last-Event-ID` (an `EventSource` does so by itself) and misses nothing, however long it was away. `ready` has"
    " an id too; `reset`, `drain` and the comment `: ping` of a quiet stream have none. `retry` is how many"
    " milliseconds to wait before reconnecting."
    "\n\n"
    "To show a conversation: read a window, open the stream with `after` its `as_of`, set the message of each event"
    " at its `position`, and append the text of each `message.delta`. Of messages outside the windows that it holds"
    " a reader ignores the events; of those that a later window brought it skips the events up to its `as_of`, and"
    " while such a window is on its way it keeps the events of messages that it does not hold, to apply those after"
    " its `as_of` to what it brings. What was deleted is `message.deleted` in all its events: no replay shows the"
    " text again."
    "\n\n"
    "Where the events after an id are not kept any more, the replay is of state: `message.snapshot` of each message"
    " that has changed since, and then the events that follow."
)
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
        when_unavailable=unavailable,
        description=_DESCRIPTION,
        events={**CONVERSATION_EVENTS, "ready": READY, "reset": RESET, "drain": DRAIN},
        sample=_SAMPLE,
    ),
)
