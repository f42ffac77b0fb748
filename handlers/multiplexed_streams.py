"""`GET /api/events`: several conversations on one connection, the feed of the tenant's lists, or both."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

from aiohttp import web
from msgspec import Meta, Struct

from events.channel import Channel
from events.event_id import EventId, parse_vector_id
from events.frame import gone_frame, many_reset_frame
from events.hub import Hub
from events.multiplexed_stream import MultiplexedStream
from events.subscriber import Subscriber
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
from handlers.kinds import FORBIDDEN
from handlers.paths import PARAMETERS
from handlers.places import Asked, Malformed, parse_after, place
from handlers.problem import Fault, Problem, invalid
from handlers.resources import HUB
from handlers.route import Call, Route
from handlers.stream_events import MULTIPLEXED_EVENTS
from storage.errors import NotFound, StorageUnavailable

# What one page can show; each costs its reader a place in every `cursor`.
CONVERSATIONS = 64

_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_UUID = PARAMETERS["conversation_id"].pattern


class MultiplexedQuery(Struct, frozen=True):
    """What to follow. Without conversations it is the feed."""

    conversations: (
        Annotated[
            str,
            Meta(
                max_length=8_000,
                description=f"At most {CONVERSATIONS} conversations' ids, separated by commas, each with where to begin"
                " behind a colon, as in `after` of a single one: `a:17,b:4,c`. Without it that one begins now.",
            ),
        ]
        | None
    ) = None
    feed: Annotated[bool, Meta(description="Whether the feed comes, too. Without conversations it always does.")] = (
        False
    )
    ticket: TicketParameter = None


async def stream_many(call: Call[MultiplexedQuery, None]) -> web.StreamResponse:
    """Subscribes first, then replays, then goes live, as the stream of a single conversation does."""
    request, query = call.request, call.query
    hub: Hub = call.resource(HUB)
    asked = _asked(request, query.conversations)
    if not call.who.feed and (query.feed or not asked):
        raise Problem(FORBIDDEN, "The ticket does not open the feed.")
    refusal = turned_away(call, hub)
    if refusal is not None:
        return refusal
    made = MultiplexedStream(
        hub,
        owner(call),
        chunked=is_chunked(request),
        feed=query.feed or not asked,
        slice_bytes=hub.config.slice_bytes,
    )
    resets: dict[str, dict[str, int]] = {}
    places: list[Subscriber | EventId] = []
    try:
        known = [name for name in asked if _UUID.fullmatch(name) and call.who.opens(name)]
        channels = await hub.watch(call.tenant, known)
        positions: dict[str, int] = {}
        beginnings: dict[str, int] = {}
        # All at once, so that those which ask the database ask together.
        places_of = {name: _place(hub, channel, asked[name]) for name, channel in channels.items()}
        for name, found in zip(places_of, await asyncio.gather(*places_of.values()), strict=True):
            if found is None:
                del channels[name]
                continue
            positions[name], reason, beginnings[name] = found
            if reason is not None:
                resets.setdefault(reason, {})[name] = positions[name]
        if made.follows_feed:
            # From here on it hears of every change, too.
            await hub.join_feed(call.tenant, made)
    except StorageUnavailable:
        hub.feeds.leave(made)
        return come_back(hub, "unavailable")
    for name, after in asked.items():
        if name in channels:
            places.append(Subscriber(made, channels[name], positions[name], beginnings[name]))
        else:
            places.append(
                after if isinstance(after, EventId) else EventId(after if isinstance(after, int) else 0, hub.epoch)
            )

    def begin(stream: MultiplexedStream) -> None:
        for name in asked:
            if name not in channels:
                stream.give(gone_frame(name))
        for reason, as_of in resets.items():
            stream.give(many_reset_frame(reason, as_of))
        stream.follow(places)
        for subscriber in stream.subscribers:
            if any(subscriber.channel.conversation_id in as_of for as_of in resets.values()):
                hub.count_reset(subscriber)
        hub.attach(stream)

    try:
        return await open_stream(request, hub, made, begin)
    finally:
        if made.transport is None:  # the client has gone before the stream began
            hub.feeds.leave(made)


async def _place(hub: Hub, channel: Channel, after: Asked) -> tuple[int, str | None, int] | None:
    """As `place`, and the channel's beginning, of which the position is. None where it was deleted a moment ago."""
    try:
        position, reason = await place(hub, channel, after)
    except NotFound:
        return None
    return position, reason, channel.beginning


def _asked(request: web.Request, text: str | None) -> dict[str, Asked]:
    """The conversations, in the order of the request, and where each is to begin. Raises 422."""
    if text is None:
        return {}
    asked: dict[str, Asked] = {}
    for part in text.split(","):
        name, colon, place_text = part.partition(":")
        if _ID.fullmatch(name) is None:
            raise _wrong("must be ids of conversations, separated by commas, each with `:` and a place, or without")
        name = name.lower()
        if name in asked:
            raise _wrong(f"names {name} twice")
        after = parse_after(place_text) if colon else None
        if colon and after is None:
            raise _wrong(f"the place of {name} must be a seq, or the id of an event")
        asked[name] = after
    if len(asked) > CONVERSATIONS:
        raise _wrong(f"must be at most {CONVERSATIONS}")
    header = request.headers.get("Last-Event-ID")
    if header:
        vector = parse_vector_id(header, len(asked))
        return {name: Malformed() if vector is None else vector[n] for n, name in enumerate(asked)}
    return asked


def _wrong(detail: str) -> Exception:
    return invalid(Fault(detail, parameter="conversations"))


_DESCRIPTION = (
    "A browser opens only six connections to a host: this is one for all that a page shows."
    "\n\n"
    "With `conversations` it brings the events of up to 64, each in the order of its `seq`, as their own streams"
    " would, but without ids. A `cursor` ends each write: its id, such as `17.4.9@k3`, holds the seq of each"
    " conversation, and a reader that was cut reconnects with it to the same address. What was written before a cut and"
    " after the last `cursor` comes again: a reader drops a `seq` that it has."
    "\n\n"
    "A conversation that is unknown, deleted, or another's, yields `conversation.gone`, and the others go on."
    "\n\n"
    "The feed brings what changes in the tenant's lists, as whole states: those of conversations as often as they"
    " change, but at most a few times a second each. It has no ids and replays nothing: a reader reads its lists when"
    " `ready` comes, which it does again when something could not be told."
)
_SAMPLE = """\
retry: 1842

event: message.delta
data: {"conversation_id":"0197…","seq":17,"message_id":"0198…","position":9,"offset":120,"text":" world"}

event: cursor
data: {}
id: 17.4.9@k3

event: feed.conversation
data: {"conversation":{"id":"0199…", …}}

: ping
"""

ROUTES = (
    Route(
        method="GET",
        path="/api/events",
        handler=stream_many,
        summary="Stream several conversations, and the feed of the tenant's lists",
        tag="Streams",
        query=MultiplexedQuery,
        media_type=MEDIA_TYPE,
        request_headers={"Last-Event-ID": "The id of the last `cursor` or `ready`. It wins over `conversations`."},
        head=False,
        when_unavailable=unavailable,
        description=_DESCRIPTION,
        events=MULTIPLEXED_EVENTS,
        sample=_SAMPLE,
    ),
)
