"""What all streams have in common: the head of the response, the hand-over of the connection, and an end at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from aiohttp import HttpVersion11, web

from events.frame import retry_frame
from events.hub import Hub
from events.stream import Stream
from handlers.resources import PROXIES
from handlers.route import HANDED_OVER

S = TypeVar("S", bound=Stream)

MEDIA_TYPE = "text/event-stream"

# Never compressed, never transformed, never held back: an event is worth what its delay leaves of it.
_HEADERS = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


def client_address(request: web.Request) -> str:
    return request.app[PROXIES].address(request)


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


def come_back(hub: Hub, reason: str) -> web.Response:
    """A stream that ends at once and says why.

    An EventSource that is answered with an error closes for good.
    """
    return web.Response(body=hub.parting(reason), headers=_HEADERS)
