"""Finds a request's route by the parts of its path.

aiohttp tries the patterns of all routes that begin alike, and wraps what it has found in a few more calls: a twentieth
of what a posted message cost (docs/performance.md). What is not found here at once goes aiohttp's way, which knows how
to refuse it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.web_request import BaseRequest
from aiohttp.web_urldispatcher import AbstractRoute, UrlMappingMatchInfo

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]

_ANY = "{}"  # what a parameter of a path is called here; a path that holds a brace is not looked for


class Dispatch:
    """Handles requests as the application would; to be made when all of its routes are there."""

    def __init__(self, app: web.Application, handle: Handler) -> None:
        self._app = app
        self._handle = handle  # the application's own way
        self._methods: dict[str, dict[str, Any]] = {}
        for resource in app.router.resources():
            for route in resource:
                self._add(resource.canonical, route)

    def _add(self, path: str, route: AbstractRoute) -> None:
        node = self._methods.setdefault(route.method, {})
        names: list[str] = []
        for part in path.split("/")[1:]:
            is_parameter = part.startswith("{")
            if is_parameter:
                names.append(part[1:-1])
            node = node.setdefault(_ANY if is_parameter else part, {})
        node["/"] = names, route  # no part of a path is called so

    async def __call__(self, request: BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.Request)  # the application makes no others
        node = self._methods.get(request.method)
        values: list[str] = []
        path = request.rel_url.raw_path
        if node is not None and "%" not in path and "{" not in path and "}" not in path:
            for part in path.split("/")[1:]:
                following = node.get(part)
                if following is None:
                    following = node.get(_ANY)
                    if following is None or not part:
                        break
                    values.append(part)
                node = following
            else:
                found = node.get("/")
                if found is not None and "Expect" not in request.headers:
                    names, route = found
                    matched = UrlMappingMatchInfo(dict(zip(names, values, strict=True)), route)
                    matched.add_app(self._app)
                    matched.freeze()
                    request._match_info = matched  # noqa: SLF001 (where the application itself puts it)
                    answered: web.StreamResponse = await route.handler(request)
                    return answered
        return await self._handle(request)
