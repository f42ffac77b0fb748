"""What stands before the routes: who may come in at all, and what a browser is told about each answer."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.web_request import BaseRequest

from handlers.cross_origin import refuse_cross_origin
from handlers.encoded_response import EncodedResponse
from handlers.kinds import MISDIRECTED
from handlers.problem import Problem
from handlers.proxies import Proxies
from server.cors import Cors
from server.loopback import is_loopback

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]

# A year. Nothing is said of subdomains: whose they are is not known here (RFC 6797, 6.1).
_STRICT_TRANSPORT = {"Strict-Transport-Security": "max-age=31536000"}

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z.-]+))(?::[0-9]{1,5})?")


class Guard:
    """`confined`: nobody has to say who they are, so that only what runs on this machine may ask.

    It listens on loopback then, and yet a page that a browser has from elsewhere could reach it: by a name of its own
    that it makes lead here (DNS rebinding), or by a write whose answer it need not see.
    """

    def __init__(self, proxies: Proxies, cors: Cors | None = None, *, confined: bool) -> None:
        self.confined = confined
        self._proxies = proxies
        self._cors = cors or Cors()
        self._lines = functools.cache(self._made_lines)  # of the few origins that are listed

    async def answer(self, handle: Handler, request: BaseRequest) -> web.StreamResponse:
        """What `handle` answers, for a request that may come in. Raises `Problem` (403, 421) for another."""
        assert isinstance(request, web.Request)  # the application makes no others
        if self.confined:
            self._admit(request)
        try:
            return await handle(request)
        except web.HTTPMethodNotAllowed as error:
            if not self._cors.asks(request):
                raise
            permission = self._cors.permission(request.headers["Origin"], error.allowed_methods)
            return EncodedResponse(204, None, "", permission)

    def headers(self, request: BaseRequest) -> dict[str, str]:
        """What each answer to this request carries, beyond what all answers do."""
        return self._made_headers(*self._known(request))

    def lines(self, request: BaseRequest) -> str:
        """The same, as the lines of a head."""
        return self._lines(*self._known(request))

    def _admit(self, request: web.Request) -> None:
        hosts = request.headers.getall("Host", ())
        if len(hosts) != 1 or not _is_here(hosts[0]):
            raise Problem(MISDIRECTED, "The Host header names no address of this machine's own, such as localhost.")
        if request.headers.get("Origin") not in self._cors.listed:
            refuse_cross_origin(request, self._proxies, required=False)

    def _known(self, request: BaseRequest) -> tuple[bool, str | None]:
        """What decides what is said: whether the client came by TLS, and the origin of its page, where it is listed."""
        origin = request.headers.get("Origin") if self._cors.listed else None
        return self._proxies.scheme(request) == "https", origin if origin in self._cors.listed else None

    def _made_headers(self, secure: bool, origin: str | None) -> dict[str, str]:
        said = self._cors.headers(origin) if self._cors.listed else {}
        return {**said, **_STRICT_TRANSPORT} if secure else said

    def _made_lines(self, secure: bool, origin: str | None) -> str:
        return "".join(f"{name}: {value}\r\n" for name, value in self._made_headers(secure, origin).items())


GUARD = web.AppKey("guard", Guard)


@functools.lru_cache(maxsize=64)
def _is_here(host: str) -> bool:
    """Whether a `Host` header names a loopback address, or the name that always means one (RFC 6761, 6.3)."""
    found = _HOST.fullmatch(host)
    return found is not None and is_loopback(found[1] or found[2])
