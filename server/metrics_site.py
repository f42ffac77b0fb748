"""`/metrics` on an address of its own, which is not for everybody who reaches the public one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

from handlers import metrics
from handlers.resources import EXPOSITION, INSTRUMENTS, METRICS_TOKEN, PROXIES, REQUESTS
from metrics.exposition import shared_folder
from server.connection import Runner
from server.drain import DRAIN, end_connection
from server.errors import name_response
from server.guard import GUARD, Guard
from server.metrics_address import MetricsAddress, listening_socket


def metrics_site(address: MetricsAddress, *, confined: bool) -> Callable[[web.Application], AsyncIterator[None]]:
    """Serves it as long as the application that it is added to lives: `app.cleanup_ctx.append(...)`.

    All workers of one gunicorn listen there, and the kernel gives a scrape to any of them: each shows the figures of
    all. `confined` is what `Guard` takes. Raises `SettingError` when nobody can listen there.
    """

    async def serve(app: web.Application) -> AsyncIterator[None]:
        runner = Runner(_of(app, confined=confined))
        await runner.setup()
        try:
            listening = listening_socket(address, shared=shared_folder() is not None)
            await web.SockSite(runner, listening).start()
            yield
        finally:
            await app[DRAIN].bounded("metrics address", runner.cleanup)

    return serve


def _of(app: web.Application, *, confined: bool) -> web.Application:
    """An application that shows the figures of `app`, and nothing else."""
    made = web.Application()
    shared: tuple[web.AppKey[Any], ...] = (EXPOSITION, INSTRUMENTS, METRICS_TOKEN, PROXIES, REQUESTS, DRAIN)
    for key in shared:
        if key in app:
            made[key] = app[key]
    made[GUARD] = Guard(app[PROXIES], confined=confined)
    made.on_response_prepare.extend((name_response, end_connection))
    for route in metrics.ROUTES:
        route.add_to(made)
    return made
