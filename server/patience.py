"""What has just started waits a little for its database: who asks it first should find it working."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from handlers.resources import DATABASE

_SECONDS = 5.0  # one whose database is away serves all the same, and says so


async def wait_for_database(app: web.Application) -> None:
    """Returns when it is there, or a little later."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SECONDS):
            await app[DATABASE].wait_until_ready()
