"""What all streams have in common: the head of the response, the hand-over of the connection, and an end at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from aiohttp import HttpVersion11, web
from msgspec import Meta

from events.frame import retry_frame
from events.hub import Hub
from events.owner import Owner
from events.stream import Stream
from handlers.rate_limits import STANDING
from handlers.resources import HUB, PROXIES
from handlers.route import HANDED_OVER, Call

S = TypeVar("S", bound=Stream)

MEDIA_TYPE = "text/event-stream"

# Read where it is found out who is asking. It is in no log: of an address these hold the path alone.
TicketParameter = (
    Annotated[str, Meta(max_length=200, description="A ticket, for a page that can send neither header nor cookie.")]
    | None
)

# Never compressed, never transformed, never held back: an event is worth what its delay leaves of it.
_HEADERS = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


def owner(call: Call[Any, Any]) -> Owner:
    request = call.request
    return Owner(request.app[PROXIES].address(request), (call.tenant, call.principal), call.who.access)


def is_chunked(request: web.Request) -> bool:
    """Whether the client knows chunks; one that speaks HTTP/1.0 reads to the end of the connection."""
    return request.version >= HttpVersion11


async def open_stream(request: web.Request, hub: Hub, stream: S, begin: Callable[[S], None]) -> web.StreamResponse:
    """Answers with `stream`, which is given the connection; `begin` is called when it has it."""
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    if _hand_over(request, stream):
        stream.write(retry_frame(hub.config.retry))
        begin(stream)
    return response


def _hand_over(request: web.Request, stream: Stream) -> bool:
    """Makes the stream the connection's own protocol, and lets go of aiohttp's handler, task, parser and request.

    False when the client has gone meanwhile.
    """
    protocol, transport = request.protocol, request.transport
    if transport is None or transport.is_closing():
        return False
    transport.set_protocol(stream)
    stream.connection_made(transport)
    if not transport.is_reading():
        transport.resume_reading()  # or a client that goes away would not be noticed
    # For aiohttp the connection is lost. It must not hear of that before it has seen this handler return: it would
    # cancel it.
    request[HANDED_OVER] = True
    protocol.transport = None
    asyncio.get_running_loop().call_soon(protocol.connection_lost, None)
    return True


def turned_away(call: Call[Any, Any], hub: Hub) -> web.Response | None:
    """What one more stream of this owner is answered with where it cannot be opened now, else None."""
    standing = call.request.get(STANDING)
    if hub.draining:
        return come_back(hub, "shutdown")
    if standing is not None and standing.wait:
        return come_back(hub, "limit", standing.wait)
    if hub.crowded(owner(call)):
        return come_back(hub, "limit")
    return None


def come_back(hub: Hub, reason: str, wait: float = 0) -> web.Response:
    """A stream that ends at once and says why, and when to come back: in `wait` seconds at the least.

    An EventSource that is answered with an error closes for good.
    """
    return web.Response(body=hub.parting(reason, wait), headers=_HEADERS)


def unavailable(request: web.Request) -> web.Response:
    """What a stream is answered with while nobody can say who is asking."""
    return come_back(request.app[HUB], "unavailable")
