"""sse-starlette on uvicorn (uvloop, httptools): a queue for each subscriber. Messages live in memory alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.peers.arguments import parse

_subscribers: set[asyncio.Queue[str]] = set()


async def publish(request: Request) -> Response:
    message = (await request.body()).decode()
    for queue in _subscribers:
        queue.put_nowait(message)
    return Response(status_code=201)


async def subscribe(request: Request) -> EventSourceResponse:
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def events() -> AsyncIterator[dict[str, str]]:
        _subscribers.add(queue)
        try:
            while True:
                yield {"data": await queue.get()}
        finally:
            _subscribers.discard(queue)

    return EventSourceResponse(events())


async def health(request: Request) -> Response:
    return Response()


app = Starlette(
    routes=[
        Route("/publish", publish, methods=["POST"]),
        Route("/events", subscribe),
        Route("/health", health),
    ]
)


def main() -> None:
    arguments = parse(__doc__)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=arguments.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
        backlog=4096,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
