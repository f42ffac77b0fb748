"""Where a reader of a stream wants to begin, and where it does."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from events.channel import Channel
from events.event_id import EventId, parse_event_id
from events.hub import Hub

_SEQ_DIGITS = 16


class Malformed(Struct, frozen=True):
    """A `Last-Event-ID` that no server of ours has issued."""


# From now, after a seq, after an id, or nowhere that is known.
Asked = EventId | int | Malformed | None


def parse_after(text: str) -> EventId | int | None:
    """A seq or an event's id; None for what is neither."""
    if text.isascii() and text.isdigit() and len(text) <= _SEQ_DIGITS:
        return int(text)
    return parse_event_id(text)


async def place(hub: Hub, channel: Channel, asked: Asked) -> tuple[int, str | None]:
    """The seq after which the reader goes on, and why what it holds is void, if it is. Raises `NotFound`."""
    reason = None
    if isinstance(asked, Malformed):
        reason = "malformed"
    elif isinstance(asked, EventId) and asked.epoch != hub.epoch:
        reason = "epoch"
    elif asked is not None:
        seq = asked.seq if isinstance(asked, EventId) else asked
        # Another process may have issued it a moment ago. What not even the database has is of another timeline.
        beginning = channel.beginning
        if seq == channel.last_seq:
            return seq, None
        # One that lacks something must not be given it from memory where the log has a floor above it: its id may be
        # from amidst a replay of state, which goes on then.
        head = await hub.head(channel)
        if channel.beginning != beginning:
            reason = "epoch"
        elif seq <= head:
            return seq, None
        else:
            reason = "ahead"
    while not channel.known:
        await hub.head(channel)  # it is beginning anew at this moment: where it stands comes with that
        await asyncio.sleep(0)  # which may be later than its head can be read
    return channel.last_seq, reason
