"""`GET /metrics`: what the server measures about itself, as Prometheus reads it."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

from aiohttp import web

from handlers.kinds import UNAUTHORIZED
from handlers.problem import Problem
from handlers.resources import EXPOSITION, METRICS_TOKEN
from handlers.route import Call, Route


async def get_metrics(call: Call[Any, None]) -> web.StreamResponse:
    """Rendered in a thread: it takes milliseconds, and streams must not wait for a scrape."""
    _check_token(call.request)
    accept = ",".join(call.request.headers.getall("Accept", ()))
    text, media_type = await asyncio.to_thread(call.resource(EXPOSITION).render, accept)
    return web.Response(body=text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})


def _check_token(request: web.Request) -> None:
    """Raises 401 where there is a token and the request does not bring it (RFC 6750, 2.1 and 3)."""
    token = request.app.get(METRICS_TOKEN)
    if token is None:
        return
    given = request.headers.getall("Authorization", ())
    if not given:
        raise Problem(UNAUTHORIZED, "The figures need a token.", headers={"WWW-Authenticate": "Bearer"})
    scheme, _, said = given[0].partition(" ")
    same = hmac.compare_digest(said.strip().encode("utf-8", "surrogateescape"), token.encode())
    if len(given) > 1 or scheme.lower() != "bearer" or not same:
        challenge = 'Bearer error="invalid_token"'
        raise Problem(UNAUTHORIZED, "This is not the token of the figures.", headers={"WWW-Authenticate": challenge})


_DESCRIPTION = (
    "In Prometheus' text format, or as OpenMetrics where `Accept` asks for `application/openmetrics-text`. Where"
    " several processes serve together, any of them shows the figures of all."
    "\n\n"
    "Where `SWARM_METRICS_TOKEN` is set, it has to come as `Authorization: Bearer …`."
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
        problems=(UNAUTHORIZED,),
        sample=_SAMPLE,
    ),
)
