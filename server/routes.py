"""Every route of the server."""

from __future__ import annotations

from handlers import (
    agents,
    conversations,
    docs,
    health,
    message_windows,
    messages,
    metrics,
    multiplexed_streams,
    openapi,
    streamed_messages,
    streams,
)
from handlers.route import Route

ROUTES: tuple[Route, ...] = (
    *conversations.ROUTES,
    *message_windows.ROUTES,
    *messages.ROUTES,
    *streamed_messages.ROUTES,
    *streams.ROUTES,
    *multiplexed_streams.ROUTES,
    *agents.ROUTES,
    *health.ROUTES,
    *metrics.ROUTES,
    *openapi.ROUTES,
    *docs.ROUTES,
)
