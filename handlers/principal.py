"""Who is asking, as which tenant, and what they may do. How that is found out is the server's business."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, Protocol

from aiohttp import web
from msgspec import Struct

from events.owner import Access
from handlers.kinds import FORBIDDEN
from handlers.problem import Problem
from storage.credentials import SCOPES, Giver, Scope

# Who a route is for: everyone, whoever has shown a credential, or those with that scope.
Need = Literal["public", "anyone", "read", "write", "run", "admin"]


class Principal(Struct, frozen=True):
    """`name` is unique within its tenant. A ticket opens only `conversations`, and the feed only with `feed`.

    `session` is the id of the session that speaks for it, if one does, which ends at `session_expires` when nobody uses
    it any more; `giver` is who sessions and tickets are given to.
    """

    tenant: str
    name: str
    scopes: frozenset[Scope] = frozenset(SCOPES)
    access: Access = Access()
    giver: Giver | None = None
    session: str | None = None
    session_expires: datetime | None = None
    conversations: frozenset[str] | None = None
    feed: bool = True

    def opens(self, conversation_id: str) -> bool:
        return self.conversations is None or conversation_id in self.conversations


# The prefix has browsers see to it that this host set it, over TLS, for all of its paths (RFC 6265bis, 4.1.3.2).
SESSION_COOKIE = "__Host-swarm"

PRINCIPAL = web.RequestKey("principal", Principal)

# Everyone, where no credentials are configured.
ANYONE = Principal("default", "anonymous")
ANONYMOUS_ROOT = "anonymous"  # what came from it ends when credentials are configured


# Of routes that are for everyone: nothing can be asked in its name.
NOBODY = Principal("", "", frozenset())


def require(principal: Principal, need: Scope) -> None:
    """Raises 403 where the principal lacks the scope (RFC 6750, 3.1)."""
    if need not in principal.scopes:
        challenge = f'Bearer realm="swarm", error="insufficient_scope", scope="{need}"'
        raise Problem(FORBIDDEN, f"This needs the scope {need}.", headers={"WWW-Authenticate": challenge})


class Authentication(Protocol):
    """Tells who is asking."""

    def recall(self, request: web.Request) -> Principal | None:
        """Who has asked with the same credential a moment ago. None: ask `identify`."""

    async def identify(self, request: web.Request) -> Principal:
        """Raises 401 without a good credential, 403 for a write that another site's page makes with a cookie, 429
        where too many bad ones came from, and `StorageUnavailable`."""

    def forget(self, ids: list[str]) -> None:
        """These credentials have ended: they are good for nothing from now on, here and in other processes."""

    def cookie(self, value: str, expires_in: float) -> Mapping[str, str]:
        """The header that has a browser keep a session, or forget it when `expires_in` is 0."""


AUTHENTICATION: web.AppKey[Authentication] = web.AppKey("authentication", Authentication)
