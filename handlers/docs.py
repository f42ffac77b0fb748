"""The documentation as a page: the OpenAPI document, readable."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from handlers.docs_page import STYLE_SOURCE
from handlers.kinds import KINDS
from handlers.problem import not_found
from handlers.route import Call, Reply, Route

DOCS = web.AppKey("docs", bytes)

_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src {STYLE_SOURCE}; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


async def get_docs(call: Call[Any, None]) -> Reply:
    return Reply(call.resource(DOCS), headers=_HEADERS)


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
