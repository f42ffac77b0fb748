"""Fan-out with aiohttp and aiohttp-sse: a queue for each subscriber, and nothing stored.

This is the package's own example with a queue where that has a clock: `sse_response`, its defaults for pings and
timeouts, and asyncio's default event loop, since neither package's documentation asks for another.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp_sse import sse_response

from bench.peers import command
from bench.peers.fan_out import Subscribers, messages_of

SUBSCRIBERS = web.AppKey("subscribers", Subscribers)


async def publish(request: web.Request) -> web.Response:
    subscribers = request.app[SUBSCRIBERS]
    for message in messages_of(request.content_type, await request.read()):
        subscribers.publish(message)
    return web.Response(status=201)


async def events(request: web.Request) -> web.StreamResponse:
    async with sse_response(request) as response:
        with request.app[SUBSCRIBERS].subscribe() as queue:
            while response.is_connected():
                await response.send(await queue.get())
    return response


async def health(request: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    arguments = command.parser("aiohttp_sse", __doc__).parse_args()
    command.raise_descriptor_limit()
    app = web.Application(client_max_size=command.MOST_BYTES)
    app[SUBSCRIBERS] = Subscribers()
    app.add_routes([web.post("/publish", publish), web.get("/events", events), web.get("/health", health)])
    web.run_app(
        app,
        host=command.HOST,
        port=arguments.port,
        access_log=None,
        print=None,
        backlog=2048,  # all subscribers come at once; uvicorn's default
        handler_cancellation=True,  # who has left is not waited for until the next message
        shutdown_timeout=1.0,  # streams never end by themselves
    )


if __name__ == "__main__":
    main()
