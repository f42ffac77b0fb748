"""Every route of the server."""

from __future__ import annotations

from handlers import (
    agents,
    conversations,
    docs,
    health,
    keys,
    message_windows,
    messages,
    metrics,
    multiplexed_streams,
    session,
    streamed_messages,
    streams,
)
from handlers.route import Route
from server.config import EdgeConfig

ROUTES: tuple[Route, ...] = (
    *conversations.ROUTES,
    *message_windows.ROUTES,
    *messages.ROUTES,
    *streamed_messages.ROUTES,
    *streams.ROUTES,
    *multiplexed_streams.ROUTES,
    *agents.ROUTES,
    *keys.ROUTES,
    *session.ROUTES,
    *health.ROUTES,
    *metrics.ROUTES,
    *docs.ROUTES,
)


def public_routes(edge: EdgeConfig) -> tuple[Route, ...]:
    """Those on the public port: `/metrics` may have an address of its own."""
    if edge.metrics_address is None:
        return ROUTES
    return tuple(route for route in ROUTES if route not in metrics.ROUTES)
