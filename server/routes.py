"""Every route of the server."""

from __future__ import annotations

from handlers import agents, conversations, docs, health, message_windows, messages, openapi, streams
from handlers.route import Route

ROUTES: tuple[Route, ...] = (
    *conversations.ROUTES,
    *message_windows.ROUTES,
    *messages.ROUTES,
    *streams.ROUTES,
    *agents.ROUTES,
    *health.ROUTES,
    *openapi.ROUTES,
    *docs.ROUTES,
)
