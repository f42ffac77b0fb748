"""Who is asking, and as which tenant. This is the one place that decides it."""

from __future__ import annotations

from aiohttp import web
from msgspec import Struct


class Principal(Struct, frozen=True):
    """`name` is unique within its tenant."""

    tenant: str
    name: str


PRINCIPAL = web.RequestKey("principal", Principal)

# While no credentials can be configured, everyone who reaches the server is this one.
_ANYONE = Principal("default", "anonymous")


def identify(request: web.Request) -> Principal:
    """The request's principal."""
    return _ANYONE
