"""Fan-out with Starlette and sse-starlette on uvicorn: a queue for each subscriber, and nothing stored.

`EventSourceResponse` around a generator that yields `{"data": …}` is what sse-starlette's documentation shows, with its
defaults. uvicorn runs on uvloop and httptools, which `uvicorn[standard]` would bring and choose.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.peers import command
from bench.peers.fan_out import Subscribers, messages_of

subscribers = Subscribers()


async def publish(request: Request) -> Response:
    for message in messages_of(request.headers.get("content-type", ""), await request.body()):
        subscribers.publish(message)
    return Response(status_code=201)


async def events(request: Request) -> Response:
    async def stream() -> AsyncIterator[dict[str, str]]:
        with subscribers.subscribe() as queue:
            while True:
                yield {"data": await queue.get()}

    return EventSourceResponse(stream())


async def health(request: Request) -> Response:
    return Response()


app = Starlette(
    routes=[
        Route("/publish", publish, methods=["POST"]),
        Route("/events", events),
        Route("/health", health),
    ]
)


def main() -> None:
    arguments = command.parser("starlette_sse", __doc__).parse_args()
    command.raise_descriptor_limit()
    uvicorn.run(
        app,
        host=command.HOST,
        port=arguments.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,  # streams never end by themselves
    )


if __name__ == "__main__":
    main()
