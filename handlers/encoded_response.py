"""The response of nearly every route: its head and its body in one write.

aiohttp's own response builds its head in a dictionary, asks its signals, and serializes it: a seventh of what a posted
message cost (docs/performance.md). This one knows what it says. It goes past the signals: what they add to other
responses, it has itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_exceptions import ClientConnectionResetError
from aiohttp.web_request import BaseRequest

from handlers.request_id import HEADER, request_id
from handlers.security_headers import security_lines

SERVER = "swarm"  # which versions of what serve is nobody's business

_STATUS_LINES: dict[tuple[HttpVersion, int], str] = {
    (version, status.value): f"HTTP/{version.major}.{version.minor} {status.value} {status.phrase}\r\n"
    for version in (HttpVersion10, HttpVersion11)
    for status in HTTPStatus
}
_NO_CONTENT = frozenset({204, 304})  # what has no body and says no length of one (RFC 9110, 8.6)


class EncodedResponse(web.StreamResponse):
    """`body` is None where there is none; `media_type` is its own. `headers` are further ones."""

    def __init__(
        self, status: int, body: bytes | None, media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status=status)
        self._encoded = body or b""
        self._media_type = media_type if body else None
        self._further = headers
        self.lines = ""
        """Further lines of the head, whole, which depend on the request."""
        self._request: BaseRequest | None = None

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Nothing is sent before all is."""
        self._request = request
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Raises `ConnectionError` when the client has gone."""
        request = self._request
        assert request is not None
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ClientConnectionResetError("the client has gone")
        message = self._head(request).encode()
        if request.method != "HEAD" and self.status not in _NO_CONTENT:
            message += self._encoded
        transport.write(message)
        request.writer.output_size += len(message)
        self._body_length = len(message)
        self._eof_sent = True
        self._request = None

    def _head(self, request: BaseRequest) -> str:
        version = HttpVersion11 if request.version >= HttpVersion11 else HttpVersion10
        head = _STATUS_LINES[version, self.status]
        if self._media_type is not None:
            head += f"Content-Type: {self._media_type}\r\n"
        if self.status not in _NO_CONTENT:
            head += f"Content-Length: {len(self._encoded)}\r\n"
        for name, value in (self._further or {}).items():
            if "\r" in value or "\n" in value:
                raise ValueError(f"the header {name} would end its line")
            head += f"{name}: {value}\r\n"
        head += security_lines(self._further)
        if not self._keep_alive:
            head += "Connection: close\r\n"
        elif version is HttpVersion10:
            head += "Connection: keep-alive\r\n"
        return f"{head}{self.lines}Date: {_date()}\r\nServer: {SERVER}\r\n{HEADER}: {request_id(request)}\r\n\r\n"


_dated: tuple[int, str] = (0, "")


def _date() -> str:
    """RFC 9110, 6.6.1; made once a second."""
    global _dated  # noqa: PLW0603 (the process has one clock)
    now = int(time.time())
    if _dated[0] != now:
        _dated = now, formatdate(now, usegmt=True)
    return _dated[1]
