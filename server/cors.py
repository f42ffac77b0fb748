"""Pages of other origins that may read the answers: Cross-Origin Resource Sharing (WHATWG Fetch, 3.3).

Credentials are not allowed: a token is a header that a page's program sets, and no cookie of ours is sent across
origins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiohttp import web

from handlers.idempotency import HEADER as IDEMPOTENCY_KEY
from handlers.idempotency import REPLAYED
from handlers.request_id import HEADER as REQUEST_ID
from handlers.route import Route

# What routes do not list as their own: what all of them read, and what a program sends with any request.
_SENT = ("Authorization", "Cache-Control", "Content-Encoding", "Content-Type", IDEMPOTENCY_KEY, REQUEST_ID)
# What stands on errors, and on the answers of many routes.
_READ = (
    *("Accept", "Accept-Encoding", "Allow", "RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate"),
    *(REPLAYED, REQUEST_ID),
)

# How many seconds a browser remembers what it was allowed: none takes more than two hours, but for one.
_MAX_AGE = 7_200


class Cors:
    """What is said to the listed origins, and to the others. Without any, there is nothing to say to anybody."""

    def __init__(self, origins: Iterable[str] = (), routes: Sequence[Route] = ()) -> None:
        exposed = {name for route in routes for name in route.headers}
        sent = {name for route in routes for name in route.request_headers}
        self._sent = ", ".join(sorted(sent.union(_SENT)))
        expose = ", ".join(sorted(exposed.union(_READ)))
        # A cache must not give one origin what was said to another, or to none.
        self._others = {"Vary": "Origin"}
        self.listed = {
            origin: {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Expose-Headers": expose,
                **self._others,
            }
            for origin in origins
        }

    def headers(self, origin: str | None) -> dict[str, str]:
        """What each answer to a page of that origin carries. To be asked only where origins are `listed`."""
        return self._others if origin is None else self.listed.get(origin, self._others)

    def asks(self, request: web.Request) -> bool:
        """Whether a browser asks if it may send another request, of a page of a listed origin or of any other."""
        headers = request.headers
        asking = request.method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers
        return asking and bool(self.listed)

    def permission(self, origin: str, methods: Iterable[str]) -> dict[str, str]:
        """The answer to that question, for a path that knows these methods; empty for an origin that is not listed."""
        if origin not in self.listed:
            return {}
        return {
            "Access-Control-Allow-Methods": ", ".join(sorted(methods)),
            "Access-Control-Allow-Headers": self._sent,
            "Access-Control-Max-Age": str(_MAX_AGE),
        }
