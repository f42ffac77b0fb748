"""The one shape of every error, and the id by which each request is found in the log."""

from __future__ import annotations

import structlog
from aiohttp import web
from aiohttp.web_request import BaseRequest

from handlers.encoded_response import SERVER
from handlers.problem import INTERNAL_ERROR, as_problem
from handlers.problem_response import problem_response
from handlers.request_id import CURRENT, HEADER, name_request, request_id
from handlers.security_headers import HEADERS
from handlers.shown_path import shown_path
from server.guard import GUARD, Handler

log = structlog.get_logger(__name__)


async def respond(request: BaseRequest, handler: Handler) -> web.StreamResponse:
    """What `handler` answers; whatever it raises, as a problem document. What is our fault is told to the log alone.

    The request has its id before anything can be logged. Requests run in tasks of their own: nothing leaks.
    """
    CURRENT.set(name_request(request))
    try:
        return await handler(request)
    except Exception as error:
        if isinstance(error, ConnectionError) and _is_gone(request):
            raise  # there is nobody to answer
        problem = as_problem(error)
        if request.writer.output_size > 0:
            # Part of an answer is out: all that can still be said is that it ends here.
            log.error("answer broken off", exc_info=error)
            raise ConnectionAbortedError from error
        if problem is None:
            problem = INTERNAL_ERROR
            log.error("request failed", exc_info=error)
        return problem_response(request, problem, shown_path(request))


def _is_gone(request: BaseRequest) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()


async def name_response(request: web.Request, response: web.StreamResponse) -> None:
    """A signal handler: what every response carries, for those that are aiohttp's own: streams, whose head a handler
    sends itself, and what is no `EncodedResponse`."""
    response.headers[HEADER] = request_id(request)
    response.headers["Server"] = SERVER
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.extend(request.app[GUARD].headers(request))
