"""One line a request, and one observation."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import msgspec
import structlog
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.web_request import BaseRequest
from msgspec import Struct

from handlers.principal import PRINCIPAL
from handlers.proxies import Proxies
from handlers.request_id import request_id
from handlers.route import HANDED_OVER, TEMPLATE
from handlers.shown_path import shown_path
from metrics.requests import RequestMetrics
from server import logs

# What nginx calls it: the client was gone before its answer was.
CLIENT_GONE = 499

_LOGGED = web.RequestKey("logged", bool)


class Line(Struct):
    """What is said of a request. Encoded in one go: structlog's processors took a tenth of a posted message's time."""

    method: str
    route: str | None
    path: str
    status: int
    duration_ms: float
    bytes: int
    request_id: str
    tenant: str | None
    peer: str | None
    event: str
    level: str
    time: datetime


_encode = msgspec.json.Encoder().encode


class RequestLog(AbstractAccessLogger):
    """aiohttp tells it of each request once its answer is out. A query string is never logged: it may hold a ticket."""

    _log = structlog.get_logger("server.requests")

    def __init__(self, metrics: RequestMetrics, proxies: Proxies) -> None:
        # What aiohttp would hand over, a logger and a format, are those of its own access log, which this replaces.
        self._metrics = metrics
        self._proxies = proxies

    @property
    def enabled(self) -> bool:
        return True

    def log(self, request: BaseRequest, response: web.StreamResponse, time: float) -> None:
        # aiohttp calls this while it handles what broke the sending off, if something did.
        broken = isinstance(sys.exception(), ConnectionError) and HANDED_OVER not in request
        self._line(request, CLIENT_GONE if broken else response.status, time, response.body_length)

    def gone(self, request: BaseRequest, time: float) -> None:
        """The client went away before its answer was ready, or while it was sent."""
        if _LOGGED not in request:
            self._line(request, CLIENT_GONE, time, request.writer.output_size)

    def _line(self, request: BaseRequest, status: int, seconds: float, size: int) -> None:
        request[_LOGGED] = True
        route = request.get(TEMPLATE)
        self._metrics.answered(request.method, route, status, seconds)
        principal = request.get(PRINCIPAL)
        line = Line(
            method=request.method,
            route=route,
            path=shown_path(request),
            status=status,
            duration_ms=round(seconds * 1000, 1),
            bytes=size,
            request_id=request_id(request),
            tenant=principal.tenant if principal is not None else None,
            peer=self._proxies.address(request) or None,
            event="request",
            level="info",
            time=datetime.now(UTC),
        )
        writer = logs.lines()
        if writer is not None:
            try:
                writer.write(_encode(line))
            except UnicodeEncodeError:  # bytes of a path that are no UTF-8
                writer = None
        if writer is None:
            fields = msgspec.structs.asdict(line)
            del fields["event"], fields["level"], fields["time"]
            self._log.info(line.event, **fields)
