"""The kinds of error that a client can get, each with its status and its stable address (`docs/problems.md`)."""

from __future__ import annotations

from http import HTTPStatus

from msgspec import Struct


class Kind(Struct, frozen=True):
    """One kind of problem (RFC 9457): `type` never changes once it has been answered, clients compare it."""

    status: int
    slug: str
    title: str
    meaning: str

    @property
    def type(self) -> str:
        return f"/problems/{self.slug}"


MALFORMED = Kind(
    400, "malformed", "Malformed request", "The request, or the JSON in its body, cannot be parsed at all."
)
UNAUTHORIZED = Kind(
    401,
    "unauthorized",
    "Unauthorized",
    "The request shows no credential, or one that is unknown, has expired or was revoked; `WWW-Authenticate` says how"
    " to show one.",
)
FORBIDDEN = Kind(
    403,
    "forbidden",
    "Forbidden",
    "The credential is good, and lacks the scope that this needs; `WWW-Authenticate` names it.",
)
CROSS_ORIGIN = Kind(
    403,
    "cross-origin",
    "Cross-origin request",
    "A browser sent this for a page of another origin, which may not change anything here. `SWARM_CORS_ORIGINS` lists"
    " the origins that may.",
)
NOT_FOUND = Kind(
    404,
    "not-found",
    "Not found",
    "There is no such path, or no such thing in this tenant. What was deleted counts as not there.",
)
METHOD_NOT_ALLOWED = Kind(
    405,
    "method-not-allowed",
    "Method not allowed",
    "The path exists; the `Allow` header lists the methods that it knows.",
)
REQUEST_TIMEOUT = Kind(
    408,
    "request-timeout",
    "Request timeout",
    "The request's head or body did not come in time (`SWARM_HEAD_TIMEOUT`, `SWARM_BODY_TIMEOUT`); the connection is"
    " closed.",
)
CONFLICT = Kind(409, "conflict", "Conflict", "The thing is in a state in which this cannot be done to it.")
TOO_LARGE = Kind(413, "too-large", "Body too large", "The body is larger than the server accepts (`SWARM_MAX_BODY`).")
UNSUPPORTED_MEDIA_TYPE = Kind(
    415,
    "unsupported-media-type",
    "Unsupported media type",
    "The body's media type, charset or coding is none that this route reads; the `Accept` header (for a coding,"
    " `Accept-Encoding`) lists those that are.",
)
EXPECTATION_FAILED = Kind(
    417,
    "expectation-failed",
    "Expectation failed",
    "The `Expect` header asks for something else than `100-continue`.",
)
MISDIRECTED = Kind(
    421,
    "misdirected",
    "Misdirected request",
    "The `Host` header names another server. One that asks nobody for credentials answers only to `localhost`, to"
    " addresses in 127.0.0.0/8 and to `[::1]`, so that no name of an attacker's can be made to lead a browser here.",
)
INVALID = Kind(
    422,
    "invalid",
    "Invalid request",
    "The request can be read and something in it is wrong; `errors` names each by `pointer` (into the body),"
    " `parameter` or `header`.",
)
KEY_REUSED = Kind(
    422,
    "idempotency-key-reused",
    "Idempotency key reused",
    "The `Idempotency-Key` was used in the last 24 hours for another request to the same route.",
)
TOO_MANY_REQUESTS = Kind(
    429,
    "too-many-requests",
    "Too many requests",
    "More requests than a principal may send (`SWARM_RATE_LIMIT`), or more refused credentials from one address"
    " (`SWARM_RATE_LIMIT_ADDRESS`). The same request may pass after `Retry-After` seconds; nothing of it was done.",
)
INTERNAL = Kind(
    500,
    "internal",
    "Internal error",
    "A fault of the server. Its log has the details under the `request_id`.",
)
UNAVAILABLE = Kind(
    503,
    "unavailable",
    "Unavailable for now",
    "The database cannot be reached, or more is waiting than the server takes in. The same request may pass after"
    " `Retry-After` seconds; with an `Idempotency-Key` it is safe to repeat.",
)
FULL = Kind(507, "full", "Out of storage", "The database has no room left.")

KINDS = (
    MALFORMED,
    UNAUTHORIZED,
    FORBIDDEN,
    CROSS_ORIGIN,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    REQUEST_TIMEOUT,
    CONFLICT,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    EXPECTATION_FAILED,
    MISDIRECTED,
    INVALID,
    KEY_REUSED,
    TOO_MANY_REQUESTS,
    INTERNAL,
    UNAVAILABLE,
    FULL,
)

# The first of a status stands for all that is said about a status alone.
_BY_STATUS = {kind.status: kind for kind in reversed(KINDS)}


def kind_of_status(status: int) -> Kind:
    """The kind for an error of which only the status is known, such as aiohttp's own."""
    known = _BY_STATUS.get(status)
    if known is not None:
        return known
    phrase = HTTPStatus(status).phrase
    return Kind(status, phrase.lower().replace(" ", "-"), phrase, phrase)
