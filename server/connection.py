"""aiohttp's connection, in the few points where it would answer or log in its own way.

What its parser refuses never reaches a handler, and a client that goes away ends its handler without a word: both are
only seen here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, LineTooLong
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server

from handlers.media_type import unread_coding
from handlers.problem import INTERNAL_ERROR, as_problem, malformed
from handlers.problem_response import problem_response
from handlers.request_id import request_id
from server.errors import sign
from server.request_log import RequestLog

log = structlog.get_logger(__name__)


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Ends the body that the parser was in when it met what it refuses: its reader would wait for the rest."""
        super().data_received(data)
        if not self._messages or not isinstance(self._messages[-1][0], _ErrInfo):
            return
        body = None
        if len(self._messages) > 1:
            body = self._messages[-2][1]
        elif self._current_request is not None:
            body = self._current_request.content
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(RequestPayloadError("the body breaks off"))

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what the parser refused, with nothing of it in the log but the request's line."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionAbortedError("nobody is left to answer, or part of an answer is out")
        if isinstance(exc, ContentEncodingError):
            problem = unread_coding()
        elif isinstance(exc, LineTooLong):
            problem = malformed("A line of the request's head is too long.")
        elif status < 500:
            problem = malformed("This is not a valid HTTP request.")
        else:
            log.error("request failed", exc_info=exc, request_id=request_id(request))
            problem = INTERNAL_ERROR
        response = problem_response(request, problem, "")
        sign(request, response)
        response.force_close()
        return response

    async def _handle_request(
        self,
        request: BaseRequest,
        start_time: float | None,
        request_handler: Callable[[BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        async def shaped(request: BaseRequest) -> web.StreamResponse:
            try:
                response = await request_handler(request)
            except web.HTTPException as refusal:  # raised before the middlewares: an Expect that nobody meets
                problem = as_problem(refusal)
                if problem is None:
                    raise
                response = problem_response(request, problem, request.rel_url.raw_path)
            if request.content.exception() is not None:
                response.force_close()
            return response

        try:
            answered = await super()._handle_request(request, start_time, shaped)
        except (asyncio.CancelledError, ConnectionError):
            if isinstance(self.access_logger, RequestLog) and start_time is not None:
                self.access_logger.gone(request, asyncio.get_running_loop().time() - start_time)
            raise
        if request.content.exception() is not None:
            self.force_close()  # aiohttp would read on in a body that is broken, and log what it meets
        return answered


class ConnectionFactory(Server):
    """Makes a `Connection` for each client."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs the application on connections of ours; also what gunicorn's worker is given."""

    def __init__(self, app: web.Application, **options: Any) -> None:
        super().__init__(
            app,
            access_log_class=RequestLog,
            handler_cancellation=True,  # a client that goes away ends its handler; commits run in tasks of their own
            keepalive_timeout=75.0,  # longer than a proxy keeps its idle connections: else it meets closed ones
            shutdown_timeout=10.0,
            **options,
        )

    async def _make_server(self) -> Server:
        made = await super()._make_server()
        return ConnectionFactory(made.request_handler, request_factory=made.request_factory, **self._kwargs)
