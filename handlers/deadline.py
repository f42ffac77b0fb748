"""A body that does not come: its client is told so, and holds nothing here any longer (RFC 9110, 15.5.9)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from aiohttp import web

from handlers.kinds import REQUEST_TIMEOUT
from handlers.problem import Problem

T = TypeVar("T")


async def in_time(request: web.Request, seconds: float, read: Awaitable[T]) -> T:
    """What `read` gives of the request's body, within `seconds`. Raises 408; the connection ends with that answer."""
    if request.content.is_eof():  # all of it is here: no timer is needed, and most bodies are small
        return await read
    try:
        async with asyncio.timeout(seconds):
            return await read
    except TimeoutError:
        problem = Problem(REQUEST_TIMEOUT, "The body did not come in time.")
        # What has broken off is not read on after the answer, and its connection is closed: see `server.connection`.
        request.content.set_exception(problem)
        raise problem from None
