"""What kind of body a request brings, and whether the route reads it."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from handlers.kinds import UNSUPPORTED_MEDIA_TYPE
from handlers.problem import Problem

JSON = "application/json"
NDJSON = "application/x-ndjson"

_PLAIN = [JSON]

# The codings that aiohttp undoes while it reads. (`br` and `zstd` would need packages that we do not have.)
_CODINGS = frozenset({"identity", "gzip", "deflate"})


def unread_coding() -> Problem:
    """What a body in a coding that nothing here undoes is answered with (RFC 9110, 12.5.3)."""
    return Problem(
        UNSUPPORTED_MEDIA_TYPE,
        "This content coding is not supported; supported are gzip and deflate.",
        headers={"Accept-Encoding": "gzip, deflate"},
    )


def media_type(request: web.Request, accepted: Sequence[str]) -> str:
    """The body's media type, one of `accepted`. Raises 415 (RFC 9110, 15.5.16), also for a charset other than UTF-8."""
    given = request.headers.getall("Content-Type", [])
    if given == _PLAIN and "Content-Encoding" not in request.headers and JSON in accepted:
        return JSON  # what nearly all clients send
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in _CODINGS:
        raise unread_coding()
    # aiohttp answers for a missing type with its own default, so what stands in the header is what counts.
    if len(given) == 1 and request.content_type in accepted:
        charset = request.charset
        if charset is None or charset.lower() in {"utf-8", "utf8"}:
            return request.content_type
        problem = "The body must be UTF-8"
    else:
        problem = "This route does not read that media type" if given else "The body's Content-Type is missing"
    names = " or ".join(accepted)
    raise Problem(
        UNSUPPORTED_MEDIA_TYPE,
        f"{problem}; send {names}, in UTF-8.",
        headers={"Accept": ", ".join(accepted)},
    )
