"""The documentation: the OpenAPI document, and the same as a page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
from aiohttp import web

from handlers.docs_page import STYLE_SOURCE, page
from handlers.kinds import KINDS
from handlers.openapi import document
from handlers.problem import not_found
from handlers.route import Call, Reply, Route


class Documentation:
    """What describes these routes. Made when somebody asks, outside the loop: it takes some 40 ms."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes

    @cached_property
    def openapi(self) -> bytes:
        return msgspec.json.encode(document(self._routes))

    @cached_property
    def page(self) -> bytes:
        return page(document(self._routes))


DOCUMENTATION = web.AppKey("documentation", Documentation)

_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src {STYLE_SOURCE}; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


async def get_openapi(call: Call[Any, None]) -> Reply:
    documentation = call.resource(DOCUMENTATION)
    return Reply(await asyncio.to_thread(lambda: documentation.openapi), headers={"Cache-Control": "no-cache"})


async def get_docs(call: Call[Any, None]) -> Reply:
    documentation = call.resource(DOCUMENTATION)
    return Reply(await asyncio.to_thread(lambda: documentation.page), headers=_HEADERS)


async def go_to_docs(call: Call[Any, None]) -> Reply:
    return Reply(headers={"Location": "/docs"})


async def explain_problem(call: Call[Any, None]) -> Reply:
    """A problem's `type` is an address: this is what is there."""
    slug = call.params["kind"]
    if not any(kind.slug == slug for kind in KINDS):
        raise not_found("kind of problem")
    return Reply(headers={"Location": f"/docs#problem-{slug}"})


ROUTES = (
    Route(
        method="GET",
        path="/openapi.json",
        handler=get_openapi,
        summary="This document, as OpenAPI 3.1",
        tag="Documentation",
        response=dict[str, Any],
    ),
    Route(
        method="GET",
        path="/docs",
        handler=get_docs,
        summary="This documentation, as a page",
        tag="Documentation",
        media_type="text/html",
    ),
    Route(
        method="GET",
        path="/problems/{kind}",
        handler=explain_problem,
        summary="What a kind of problem means",
        tag="Documentation",
        status=303,
        headers={"Location": "The place in the documentation."},
    ),
    Route(
        method="GET",
        path="/",
        handler=go_to_docs,
        summary="Leads to the documentation",
        tag="Documentation",
        status=302,
        headers={"Location": "The documentation."},
    ),
)
