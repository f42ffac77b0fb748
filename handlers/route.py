"""Routes, declared once: what a route takes, gives and can answer with is what serves it and what OpenAPI shows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from handlers.deadline import in_time
from handlers.encoded_response import EncodedResponse
from handlers.idempotency import REPLAYED, refuse_key, write_key
from handlers.json_body import decode
from handlers.kinds import (
    CROSS_ORIGIN,
    FORBIDDEN,
    FULL,
    INTERNAL,
    INVALID,
    KEY_REUSED,
    MALFORMED,
    MISDIRECTED,
    NOT_FOUND,
    REQUEST_TIMEOUT,
    TOO_LARGE,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA_TYPE,
    Kind,
)
from handlers.media_type import JSON, media_type
from handlers.paths import read_path
from handlers.principal import AUTHENTICATION, NOBODY, PRINCIPAL, Need, Principal, require
from handlers.problem import Problem
from handlers.query import NoParameters, QueryReader
from handlers.rate_limits import RateLimits, too_many
from handlers.resources import RATE_LIMITS, REQUESTS
from storage.credentials import Scope
from storage.errors import StorageUnavailable
from storage.idempotency import Answer, WriteKey

Q = TypeVar("Q")
B = TypeVar("B")
R = TypeVar("R")

# The path of the route that answers, with its parameters' names: what log lines are grouped by.
TEMPLATE = web.RequestKey("template", str)
# A handler that has taken the connection from aiohttp sets this on its request: then a connection that aiohttp finds
# gone is not a client that went away.
HANDED_OVER = web.RequestKey("handed_over", bool)

_SAFE = frozenset({"GET", "HEAD"})
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)  # not frozen: that would make it cost four times as much, at each request
class Call(Generic[Q, B]):
    """One request to a route, everything in it checked. Where `media_type` is not JSON, `body` is None and unread."""

    app: web.Application
    request: web.Request
    tenant: str
    principal: str
    params: Mapping[str, str]
    query: Q
    body: B
    raw: bytes
    media_type: str
    key: WriteKey | None
    who: Principal

    def resource(self, key: web.AppKey[R]) -> R:
        """What the application holds under `key` (see `handlers.resources`)."""
        return self.app[key]


@dataclass(slots=True)
class Reply:
    """What a handler answers with. A Struct is encoded as JSON; without a `status` it is the route's own."""

    body: bytes | Struct | None = None
    status: int | None = None
    headers: Mapping[str, str] | None = None

    @classmethod
    def of(cls, answer: Answer, headers: Mapping[str, str] | None = None) -> Reply:
        """What a write answered, now or when its idempotency key was first used."""
        if answer.replayed:
            headers = {**(headers or {}), REPLAYED: "true"}
        return cls(answer.body or None, answer.status, headers)


Handler = Callable[[Call[Any, Any]], Awaitable[Reply | web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one path.

    `body` is a type that msgspec decodes; `response` one that describes the answer, or a tuple of such. `streamed`
    names further media types whose body the handler reads itself. `request_headers` and `headers` are what it reads
    and sends beyond what all routes do, each name with a sentence; `example` is a body that it accepts. `also` are
    further answers that are no problems, each status with the type of its body. `problems` are what the handler itself
    can answer with: those that parsing can lead to are added; `members` are what they say beyond what all problems do,
    each status with a type. `description` is what the summary has no room for, in
    paragraphs; `events` are those of a stream, each with the type of its data and a sentence, and `sample` is how an
    answer looks that is no JSON. `access` is who it is for, where that is not who may read or write. One that is not
    `keyed` takes no idempotency key: its answer holds a secret, which is not to be stored. `when_unavailable` makes the
    answer when nobody can say who is asking, for an `EventSource`, which takes a 5xx for the end.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    query: type[Any] = NoParameters
    body: Any = None
    streamed: tuple[str, ...] = ()
    response: Any = None
    status: int = 200
    media_type: str = JSON
    also: Mapping[int, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    request_headers: Mapping[str, str] = field(default_factory=dict)
    example: Any = None
    problems: tuple[Kind, ...] = ()
    members: Mapping[int, Any] = field(default_factory=dict)
    head: bool = True
    description: str = ""
    events: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    sample: str = ""
    access: Need | None = None
    keyed: bool = True
    when_unavailable: Callable[[web.Request], web.StreamResponse] | None = None

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def methods(self) -> tuple[str, ...]:
        """What it is registered for: who can GET can ask for the head alone (RFC 9110, 9.1), but for a stream."""
        return ("GET", "HEAD") if self.method == "GET" and self.head else (self.method,)

    @property
    def writes(self) -> bool:
        return self.method not in _SAFE

    @property
    def needs(self) -> Need:
        if self.access is not None:
            return self.access
        if not self.path.startswith("/api/"):
            return "public"
        return "write" if self.writes else "read"

    @property
    def takes_ticket(self) -> bool:
        return any(name == "ticket" for name in self.query.__struct_fields__)

    @property
    def counted(self) -> bool:
        """Whether its requests are of a principal, whose rate is limited. Health and documentation are for everyone."""
        return self.path.startswith("/api/")

    @property
    def accepts(self) -> tuple[str, ...]:
        return (JSON, *self.streamed) if self.body is not None else ()

    @property
    def all_problems(self) -> tuple[Kind, ...]:
        kinds = [*self.problems, MISDIRECTED, INVALID, INTERNAL]
        if self.body is not None:
            kinds += [MALFORMED, REQUEST_TIMEOUT, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE]
        if "{" in self.path:
            kinds.append(NOT_FOUND)
        if self.writes:
            kinds += [CROSS_ORIGIN, FULL]
            if self.keyed:
                kinds.append(KEY_REUSED)
        if self.needs != "public":
            kinds += [UNAUTHORIZED, UNAVAILABLE]
            if self.needs != "anyone":
                kinds.append(FORBIDDEN)
        if self.counted:
            kinds.append(TOO_MANY_REQUESTS)
        return tuple(sorted(set(kinds), key=lambda kind: (kind.status, kind.slug)))

    def add_to(self, app: web.Application) -> None:
        """Registers the route."""
        limits = app.get(RATE_LIMITS)
        answer = self._bind(app, limits if limits is not None and limits.counts_requests and self.counted else None)
        resource = app.router.add_resource(self.path)
        for method in self.methods:
            resource.add_route(method, answer)

    def _bind(
        self, app: web.Application, limits: RateLimits | None
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        reader = QueryReader(self.query)
        decoder = None if self.body is None else msgspec.json.Decoder(self.body)
        path, name, accepts, handler = self.path, self.name, self.accepts, self.handler
        keyed, unkeyed = self.writes and self.keyed, self.writes and not self.keyed
        public, is_stream, when_unavailable = self.needs == "public", bool(self.events), self.when_unavailable
        check = self._check()

        async def answer(request: web.Request) -> web.StreamResponse:
            request[TEMPLATE] = path
            principal = NOBODY
            if not public:
                # Nearly always it is known who it is: a coroutine of its own would cost more than looking.
                known = app[AUTHENTICATION].recall(request)
                if known is None:
                    try:
                        known = await app[AUTHENTICATION].identify(request)
                    except StorageUnavailable:
                        if when_unavailable is None:
                            raise
                        return when_unavailable(request)
                principal = request[PRINCIPAL] = known
                check(principal)
            standing = None
            if limits is not None:
                standing = await limits.count(request, principal.tenant, principal.name)
                if standing.wait and not is_stream:  # a stream says it in its own way
                    raise too_many("The principal sends more requests than it may.", standing.wait)
            params = read_path(request)
            query = reader.read(request)
            body, raw, kind = None, b"", ""
            if decoder is not None:
                kind = media_type(request, accepts)
                if kind == JSON:
                    raw = await _read(request)
                    body = decode(raw, decoder)
            key = write_key(request, principal.name, name, raw) if keyed else None
            if unkeyed:
                refuse_key(request)
            reply = await handler(
                Call(app, request, principal.tenant, principal.name, params, query, body, raw, kind, key, principal)
            )
            if not isinstance(reply, Reply):
                return reply
            if standing is not None:
                reply.headers = {**(reply.headers or {}), **standing.headers}
            return self._response(reply)

        return answer

    def _check(self) -> Callable[[Principal], None]:
        """Raises 403 for a principal that this is not for."""
        need, takes_ticket = self.needs, self.takes_ticket
        scope: Scope | None = None if need == "public" or need == "anyone" else need  # noqa: PLR1714 (mypy narrows it)

        def check(principal: Principal) -> None:
            if scope is not None:
                require(principal, scope)
            if principal.conversations is not None and not takes_ticket:
                raise Problem(FORBIDDEN, "A ticket opens streams, and nothing else.")

        return check

    def _response(self, reply: Reply) -> EncodedResponse:
        body = _encode(reply.body) if isinstance(reply.body, Struct) else reply.body
        return EncodedResponse(reply.status or self.status, body, self.media_type, reply.headers)


async def _read(request: web.Request) -> bytes:
    """The whole body.

    Raises 413 (what is declared as too large is not read), 400 (what breaks off in transit) and 408 (what drips).
    """
    content = request.content
    if content.is_eof() and content.total_bytes <= request.client_max_size:
        return content.read_nowait()  # most bodies come with their head: all of it is here
    if (request.content_length or 0) > request.client_max_size:
        raise Problem(TOO_LARGE, f"The body is larger than {request.client_max_size} bytes.")
    try:
        return await in_time(request, request.app[REQUESTS].body_timeout, request.read())
    except web.HTTPRequestEntityTooLarge:
        raise Problem(TOO_LARGE, f"The body is larger than {request.client_max_size} bytes.") from None
