"""aiohttp's connection, in the few points where it would answer or log in its own way.

What its parser refuses never reaches a handler, a client that goes away ends its handler without a word, and a request
whose head does not end is none yet: they are only seen here.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server

from handlers.encoded_response import EncodedResponse
from handlers.kinds import REQUEST_TIMEOUT
from handlers.media_type import unread_coding
from handlers.problem import INTERNAL_ERROR, Problem, malformed
from handlers.problem_response import problem_response
from handlers.request_id import request_id
from handlers.resources import INSTRUMENTS, PROXIES, REQUESTS
from server.dispatch import Dispatch
from server.drain import DRAIN, Drain
from server.errors import respond
from server.guard import GUARD, Guard
from server.request_log import RequestLog

log = structlog.get_logger(__name__)


_END_OF_HEAD = b"\r\n\r\n"
# A body that nobody reads (of a request that was refused by its head) is read and thrown away for so many seconds at
# most: its client reads the answer only when it has sent what it has.
_LINGER = 10.0


class LateHead(Exception):
    """The head of a request did not come in time."""


class Connection(RequestHandler):
    """One client's connection.

    The head of a request must be whole `head_timeout` seconds after its first byte; that of the first one, after the
    connection was made. What is between a request's end and the next one's first byte is aiohttp's keep-alive.
    """

    __slots__ = ("_body", "_drain", "_guard", "_head_begun", "_head_since", "_head_timeout", "_head_timer")

    def __init__(
        self,
        manager: Server,
        *,
        head_timeout: float,
        request_log: RequestLog,
        drain: Drain,
        guard: Guard,
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self.access_logger, self._logging_enabled = request_log, request_log.enabled
        self._drain = drain
        self._guard = guard
        self._head_timeout = head_timeout
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_since: float | None = None  # since when a head is waited for
        self._head_begun = False  # something of it has come
        self._body: StreamReader = EMPTY_PAYLOAD  # that of the last request that came

    def abandon(self) -> None:
        """The request that is being answered ends here."""
        if self._task_handler is not None:
            self._task_handler.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def data_received(self, data: bytes) -> None:
        """Notices heads that have begun, and bodies that break off."""
        if (self._close or self._force_close) and not self._body.is_eof():
            self._end_body(data)
            return
        requests = self._request_count
        in_body = self._upgraded or not self._body.is_eof()
        super().data_received(data)
        if self._request_count != requests:
            self._body = self._messages[-1][1]
            self._head_since = None
            self._head_begun = self._is_followed(data)
            self._end_broken_body()
        elif in_body:
            return  # what may follow the body in the same piece is noticed with what comes next
        elif data.strip(b"\r\n"):  # empty lines before a request's line are no part of it (RFC 9112, 2.2)
            self._head_begun = True
        if not self._head_begun and self._request_count:
            self._head_since = None  # the timer, if there is one, finds nothing to do, and stays away
        elif self._head_since is None:
            self._await_head()

    def _end_body(self, data: bytes) -> None:
        """More of a body whose connection is being closed, as in a drain.

        aiohttp would throw it away, and whoever reads the body would wait for what has come already. What follows the
        body is of a request that is not taken any more.
        """
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except HttpProcessingError:
            if self._body.exception() is None:
                self._body.set_exception(RequestPayloadError("the body breaks off"))

    def _is_followed(self, data: bytes) -> bool:
        """Whether there is something of another head in `data`, in which a request's head has ended.

        Not said of what comes with a body, whose end only the parser knows.
        """
        at_end = data.endswith(_END_OF_HEAD) or _END_OF_HEAD.endswith(data)
        return self._body is EMPTY_PAYLOAD and not at_end and not self._upgraded

    def _await_head(self) -> None:
        self._head_since = self._loop.time()
        if self._head_timer is None:
            self._head_timer = self._loop.call_at(self._head_since + self._head_timeout, self._check_head)

    def _check_head(self) -> None:
        """Ends the connection when its time is over. One timer serves many heads: most are whole long before."""
        self._head_timer = None
        if self._head_since is None or self._force_close or self._close:
            return
        now, waiter = self._loop.time(), self._waiter
        if waiter is None or waiter.done():
            self._head_since = now  # a request before it is being answered: until then this one may wait
        due = self._head_since + self._head_timeout
        if now < due:
            self._head_timer = self._loop.call_at(due, self._check_head)
        elif waiter is not None and self._head_begun:
            # As if the parser had refused it: it is answered, and nothing is read any more.
            self._messages.append((_ErrInfo(status=408, exc=LateHead(), message=""), EMPTY_PAYLOAD))
            self._close = True
            waiter.set_result(None)
        else:
            self.force_close()

    def _process_keepalive(self) -> None:
        if self._head_since is None:
            super()._process_keepalive()
        else:
            self._keepalive_handle = None  # what is not idle any more has its own deadline

    def _end_broken_body(self) -> None:
        """Ends the body that the parser was in when it met what it refuses: its reader would wait for the rest."""
        if not isinstance(self._messages[-1][0], _ErrInfo):
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
        elif isinstance(exc, LateHead):
            problem = Problem(REQUEST_TIMEOUT, "The request's head did not come in time.")
        elif status < 500:
            problem = malformed("This is not a valid HTTP request.")
        else:
            log.error("request failed", exc_info=exc, request_id=request_id(request))
            problem = INTERNAL_ERROR
        response = problem_response(request, problem, "")
        response.force_close()
        return response

    async def _handle_request(
        self,
        request: BaseRequest,
        start_time: float | None,
        request_handler: Callable[[BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        refused = request_handler is not self._request_handler  # by the parser: its answer is `handle_error`'s

        async def shaped(request: BaseRequest) -> web.StreamResponse:
            response = await (request_handler(request) if refused else respond(request, request_handler))
            if isinstance(response, EncodedResponse):
                response.lines = self._guard.lines(request)
            if self._drain.begun or request.content.exception() is not None:
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
            access_log=None,  # each connection is given a `RequestLog`
            handler_cancellation=True,  # a client that goes away ends its handler; commits run in tasks of their own
            keepalive_timeout=75.0,  # longer than a proxy keeps its idle connections: else it meets closed ones
            shutdown_timeout=app[DRAIN].seconds / 2,
            **options,
        )

    async def cleanup(self) -> None:
        """Ends streams at once, lets requests in flight end, and closes everything, in the time that there is."""
        self.app[DRAIN].begin()
        await super().cleanup()

    def hurry(self) -> None:
        """What has not ended yet is ended."""
        self.app[DRAIN].hurry()
        for connection in [] if self.server is None else self.server.connections:
            if isinstance(connection, Connection):
                connection.abandon()

    async def _make_server(self) -> Server:
        made = await super()._make_server()
        limits, guard = self.app[REQUESTS], self.app[GUARD]
        return ConnectionFactory(
            functools.partial(guard.answer, Dispatch(self.app, made.request_handler)),
            request_factory=made.request_factory,
            head_timeout=limits.head_timeout,
            drain=self.app[DRAIN],
            guard=guard,
            request_log=RequestLog(self.app[INSTRUMENTS].requests, self.app[PROXIES]),
            lingering_time=min(_LINGER, limits.body_timeout),
            **self._kwargs,
        )
