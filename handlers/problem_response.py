"""A problem as an HTTP response."""

from __future__ import annotations

from aiohttp import web
from aiohttp.web_request import BaseRequest

from handlers.problem import MEDIA_TYPE, Problem
from handlers.request_id import request_id


def problem_response(request: BaseRequest, problem: Problem, instance: str) -> web.Response:
    """The response that says `problem`. `instance` is the path that was asked for, empty where none could be read."""
    return web.Response(
        status=problem.kind.status,
        body=problem.document(instance, request_id(request)),
        content_type=MEDIA_TYPE,
        headers=problem.headers,
    )
