"""A problem as an HTTP response."""

from __future__ import annotations

from aiohttp.web_request import BaseRequest

from handlers.encoded_response import EncodedResponse
from handlers.problem import MEDIA_TYPE, Problem
from handlers.rate_limits import STANDING
from handlers.request_id import request_id


def problem_response(request: BaseRequest, problem: Problem, instance: str) -> EncodedResponse:
    """The response that says `problem`. `instance` is the path that was asked for, empty where none could be read."""
    body = problem.document(instance, request_id(request))
    standing = request.get(STANDING)
    headers = problem.headers if standing is None else {**problem.headers, **standing.headers}
    return EncodedResponse(problem.kind.status, body, MEDIA_TYPE, headers)
