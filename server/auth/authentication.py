"""Who is asking: by an API key or a token in `Authorization`, by a ticket in the query, or by a session's cookie.

A credential that was good is good for a few seconds more without another look: the database is asked for few requests,
and a revoked one ends everywhere within a minute, at once where Redis tells of it.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog
from aiohttp import web
from msgspec import Struct

from events.owner import Access
from handlers.cross_origin import refuse_cross_origin
from handlers.kinds import UNAUTHORIZED
from handlers.principal import ANONYMOUS_ROOT, ANYONE, SESSION_COOKIE, Principal
from handlers.problem import Problem
from handlers.rate_limits import RateLimits
from handlers.resources import PROXIES
from metrics.authentication import AuthenticationMetrics
from server.auth.claims import Claims, KeysUnavailable, TokenRefused
from server.auth.config import AuthConfig
from storage.credentials import SCOPES, Credential, Credentials, Giver, Kind, is_key_id, parse_token
from storage.errors import StorageUnavailable

log = structlog.get_logger(__name__)

TICKET = "ticket"
_LONGEST = 8 * 1024  # bytes of a credential
_MOST_KNOWN = 16_384  # credentials that are remembered
_BOOTSTRAP = "bootstrap"


class Verifier(Protocol):
    async def verify(self, token: str) -> Claims: ...


class _Shown(Struct, frozen=True):
    """A credential as it came, and where."""

    text: str
    kind: Kind  # which of ours may come there


class _Known(Struct, frozen=True):
    principal: Principal
    until: float  # by the monotonic clock


class Refused(Exception):
    """The credential is not good. `reason` holds nothing of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Authenticator:
    """`open` serves everyone who shows no credential. `issuers` names whose tokens are believed: what came from
    tokens ends when it changes. `ended` is told of those that ended in this process."""

    def __init__(
        self,
        config: AuthConfig,
        credentials: Credentials,
        tokens: Verifier | None,
        limits: RateLimits,
        metrics: AuthenticationMetrics,
        *,
        open: bool,  # noqa: A002 (as in `Settings`)
        session_life: float,
        leeway: float,
        issuers: str,
        address: Callable[[web.Request], str],
        ended: Callable[[list[str]], None],
    ) -> None:
        self._config = config
        self._credentials = credentials
        self._tokens = tokens
        self._limits = limits
        self._metrics = metrics
        self._open = open
        self._leeway = leeway  # of tokens: so long they are good after they have expired
        self._session_life = timedelta(seconds=session_life)
        self._address = address
        self._ended = ended
        self._bootstrap = None if config.bootstrap_key is None else _digest(config.bootstrap_key)
        # What a session or a ticket came from in the end that is no key: its root says which it was, so that what came
        # from another bootstrap key, or from tokens by another secret, is good for nothing any more.
        self._of_bootstrap = f"{_BOOTSTRAP}:{(self._bootstrap or b'').hex()[:16]}"
        self._of_tokens = f"jwt:{issuers}"
        self._roots = {
            *([] if self._bootstrap is None else [self._of_bootstrap]),
            *([] if tokens is None else [self._of_tokens]),
            *([ANONYMOUS_ROOT] if open else []),
        }
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._generation = 0  # what was asked of the database before somebody was forgotten is not remembered after

    def recall(self, request: web.Request) -> Principal | None:
        """See `Authentication`. Of a cookie it knows nothing: what comes with one is looked at in `identify`."""
        text = request.headers.get("Authorization")
        if text is None:
            return ANYONE if self._open and not _has_another(request) else None
        known = self._known.get(_key("key", text[7:])) if text.startswith("Bearer ") else None
        if known is None or known.until < time.monotonic():
            return None
        # One header of several would be enough for that one, and another for whoever looks at the others.
        return known.principal if len(request.headers.getall("Authorization")) == 1 else None

    async def identify(self, request: web.Request) -> Principal:
        """See `Authentication`."""
        try:
            shown = _shown(request)
            if shown is None:
                if self._open:
                    return ANYONE
                self._metrics.refused("missing")
                raise _unauthenticated("A credential is needed.", None)
            if shown.kind == "session":
                refuse_cross_origin(request, request.app[PROXIES], required=True)
            known = self._known.get(_key(shown.kind, shown.text))
            if known is None:
                self._limits.check(self._address(request))
            elif known.until >= time.monotonic():
                return known.principal
            # What was good is no guess: whoever guesses at the same address, a proxy's say, must not lock it out.
            return await self._look(shown)
        except Refused as refused:
            self._metrics.refused("invalid")
            await self._limits.failed(self._address(request))
            raise _unauthenticated(refused.reason, "invalid_token") from None

    async def _look(self, shown: _Shown) -> Principal:
        generation = self._generation
        key = _key(shown.kind, shown.text)
        try:
            principal, expires = await self._principal(shown)
        except Refused:
            self._known.pop(key, None)
            raise
        until = time.monotonic() + self._config.recheck
        if expires is not None:
            until = min(until, time.monotonic() + expires - time.time())
        if generation == self._generation:
            self._known[key] = _Known(principal, until)
            self._known.move_to_end(key)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return principal

    async def _principal(self, shown: _Shown) -> tuple[Principal, float | None]:
        """Who it is, and until when the credential is good, in Unix seconds."""
        if (
            self._bootstrap is not None  # which may look like any other key
            and shown.kind == "key"
            and hmac.compare_digest(self._bootstrap, _digest(shown.text))
        ):
            giver = Giver("default", _BOOTSTRAP, frozenset(SCOPES), self._of_bootstrap, None, None)
            return Principal("default", _BOOTSTRAP, giver=giver), None
        token = parse_token(shown.text)
        if token is not None:
            if token.kind != shown.kind:
                raise Refused("This credential is not to be shown here.")
            found = await self._credentials.find(token, self._session_life)
            if found is None or not (is_key_id(found.root) or found.root in self._roots):
                raise Refused("The credential is unknown, has expired, or was revoked.")
            return _of_credential(found), None if found.expires_at is None else found.expires_at.timestamp()
        if shown.kind != "key":
            raise Refused("This is no credential that is to be shown here.")
        if self._tokens is not None and shown.text.count(".") >= 2:
            principal = await self._of_token(self._tokens, shown.text)
            return principal, principal.access.expires
        raise Refused("The credential is unknown, has expired, or was revoked.")

    async def _of_token(self, tokens: Verifier, text: str) -> Principal:
        try:
            claims = await tokens.verify(text)
        except TokenRefused as refused:
            raise Refused(refused.reason) from None
        except KeysUnavailable as error:
            raise StorageUnavailable("the keys of tokens cannot be fetched") from error
        name = f"jwt:{claims.subject}"
        scopes = frozenset(scope for scope in SCOPES if scope in claims.scopes)
        giver = Giver(claims.tenant, name, scopes, self._of_tokens, None, datetime.fromtimestamp(claims.expires, UTC))
        return Principal(claims.tenant, name, scopes, Access("", claims.expires + self._leeway), giver)

    def forget(self, ids: list[str]) -> None:
        """See `Authentication`."""
        self.heard_of(ids)
        self._ended(ids)

    def heard_of(self, ids: list[str]) -> None:
        """Another process says that these have ended."""
        self._generation += 1
        gone = set(ids)
        for key, known in list(self._known.items()):
            if known.principal.access.credential in gone:
                del self._known[key]

    def cookie(self, value: str, expires_in: float) -> Mapping[str, str]:
        """See `Authentication`."""
        attributes = "Path=/; Secure; HttpOnly; SameSite=Strict"
        return {"Set-Cookie": f"{SESSION_COOKIE}={value}; Max-Age={int(expires_in)}; {attributes}"}


def _shown(request: web.Request) -> _Shown | None:
    """The one credential that the request shows. Raises `Refused` for one that is none, and for several of a kind."""
    headers = request.headers.getall("Authorization", [])
    if headers:
        scheme, _, text = headers[0].partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer" or not text.strip(" "):
            raise Refused("Authorization must be given once, as `Bearer` and a credential.")
        return _bounded(text.strip(" "), "key")
    tickets = request.query.getall(TICKET, [])
    if tickets:
        if len(tickets) > 1:
            raise Refused("ticket must be given once.")
        return _bounded(tickets[0], "ticket")
    cookie = request.cookies.get(SESSION_COOKIE)
    return None if cookie is None else _bounded(cookie, "session")


def _bounded(text: str, kind: Kind) -> _Shown:
    if len(text) > _LONGEST or not text.isascii():
        raise Refused("This is no credential.")
    return _Shown(text, kind)


def _has_another(request: web.Request) -> bool:
    """Whether there may be a credential elsewhere than in `Authorization`."""
    return "Cookie" in request.headers or TICKET in request.rel_url.raw_query_string


def _of_credential(found: Credential) -> Principal:
    # A session slides: its end is where it must not go beyond.
    ends = found.expires_at if found.kind == "key" else found.ends_at
    expires = None if ends is None else ends.timestamp()
    giver = Giver(found.tenant, found.principal, found.scopes, found.root, found.id, ends)
    ticket = found.kind == "ticket"
    return Principal(
        tenant=found.tenant,
        name=found.principal,
        scopes=found.scopes,
        # What a ticket has opened stays open when it expires, as long as what it was given for is good.
        access=Access((found.parent or "") if ticket else found.id, expires),
        giver=None if ticket else giver,
        session=found.id if found.kind == "session" else None,
        session_expires=found.expires_at if found.kind == "session" else None,
        conversations=found.conversations,
        feed=found.feed or not ticket,
    )


def _unauthenticated(detail: str, error: str | None) -> Problem:
    challenge = 'Bearer realm="swarm"' + (f', error="{error}"' if error else "")
    return Problem(UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})


def _key(kind: Kind, text: str) -> bytes:
    """Under what a credential is known again: by its digest, and only where it came before."""
    return _digest(text) + kind.encode()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
