"""What the two peers written by hand share: aiohttp on uvloop, a pool of asyncpg, and a message as Swarm sends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import asyncpg
import uvloop
from aiohttp import web
from msgspec import Raw, Struct

from bench.peers import command

POOL = web.AppKey("pool", asyncpg.Pool)


class Message(Struct, gc=False):
    """`position` is `Raw` where the database has yet to give it."""

    id: str
    conversation_id: str
    position: int | Raw
    role: str
    agent_id: str | None
    run_id: str | None
    content: str
    status: str
    reply_to: str | None
    model: str | None
    tool_calls: Raw
    usage: Raw | None
    metadata: Raw
    length: int | None
    sha256: str | None
    created_at: datetime
    updated_at: datetime


def run(name: str, description: str | None, route: web.RouteDef) -> None:
    """Serves one route until SIGTERM, as the command line says."""
    parser = command.parser(name, description, database=True)
    parser.add_argument("--pool", type=int, default=10, help="connections to the database")
    arguments = parser.parse_args()

    async def pool(app: web.Application) -> AsyncIterator[None]:
        async with asyncpg.create_pool(
            arguments.database_url,
            min_size=arguments.pool,
            max_size=arguments.pool,
            reset=_keep,
            # Just-in-time compilation never pays for statements this short.
            server_settings={"synchronous_commit": "on", "jit": "off"},
        ) as app[POOL]:
            yield

    command.raise_descriptor_limit()
    app = web.Application(client_max_size=command.MOST_BYTES)
    app.cleanup_ctx.append(pool)
    app.add_routes([route, web.get("/health", _health)])
    web.run_app(
        app,
        host=command.HOST,
        port=arguments.port,
        access_log=None,
        print=None,
        backlog=2048,
        loop=uvloop.new_event_loop(),
    )


async def _health(request: web.Request) -> web.Response:
    return web.Response()


async def _keep(connection: asyncpg.Connection[Any]) -> None:
    """Nothing in a session is ever changed: the pool's own way to reset it would cost each request a round trip."""
