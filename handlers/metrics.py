"""`GET /metrics`: what the server measures about itself, as Prometheus reads it."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from handlers.resources import EXPOSITION
from handlers.route import Call, Route


async def get_metrics(call: Call[Any, None]) -> web.StreamResponse:
    """Rendered in a thread: it takes milliseconds, and streams must not wait for a scrape."""
    accept = ",".join(call.request.headers.getall("Accept", ()))
    text, media_type = await asyncio.to_thread(call.resource(EXPOSITION).render, accept)
    return web.Response(body=text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})


_DESCRIPTION = (
    "In Prometheus' text format, or as OpenMetrics where `Accept` asks for `application/openmetrics-text`. Where"
    " several processes serve together, any of them shows the figures of all."
)
_SAMPLE = """\
# HELP swarm_streams_open Streams that are open: of one conversation, or of several and the feed.
# TYPE swarm_streams_open gauge
swarm_streams_open{kind="conversation"} 12.0
swarm_streams_open{kind="several"} 803.0
"""

ROUTES = (
    Route(
        method="GET",
        path="/metrics",
        handler=get_metrics,
        summary="What the server measures about itself",
        tag="Health",
        media_type="text/plain",
        description=_DESCRIPTION,
        sample=_SAMPLE,
    ),
)
