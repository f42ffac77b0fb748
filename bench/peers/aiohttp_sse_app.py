"""aiohttp with aiohttp-sse: a queue for each subscriber, as its examples show. Messages live in memory alone."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp_sse import sse_response

from bench.peers.arguments import parse

_subscribers: set[asyncio.Queue[str]] = set()


async def publish(request: web.Request) -> web.Response:
    message = await request.text()
    for queue in _subscribers:
        queue.put_nowait(message)
    return web.Response(status=201)


async def subscribe(request: web.Request) -> web.StreamResponse:
    queue: asyncio.Queue[str] = asyncio.Queue()
    async with sse_response(request) as response:
        _subscribers.add(queue)
        try:
            while response.is_connected():
                await response.send(await queue.get())
        finally:
            _subscribers.discard(queue)
    return response


async def health(request: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    app = web.Application()
    app.router.add_post("/publish", publish)
    app.router.add_get("/events", subscribe)
    app.router.add_get("/health", health)
    arguments = parse(__doc__)
    web.run_app(
        app, host="127.0.0.1", port=arguments.port, access_log=None, print=None, backlog=4096, shutdown_timeout=0.1
    )


if __name__ == "__main__":
    main()
