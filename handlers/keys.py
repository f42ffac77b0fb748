"""API keys of the tenant: made, listed, revoked. For who has the scope `admin`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from handlers import requests
from handlers.kinds import NOT_FOUND, UNAVAILABLE
from handlers.principal import AUTHENTICATION
from handlers.problem import Fault, invalid
from handlers.resources import CREDENTIALS
from handlers.route import Call, Reply, Route
from storage.credentials import SCOPES, Credential, Scope
from storage.records import now

_COLLECTION = "/api/keys"
_ONE = "/api/keys/{key_id}"


class NewKey(Struct, frozen=True, forbid_unknown_fields=True):
    """What it is for, what it may do, and until when: without a time, until it is revoked."""

    name: requests.Name
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=len(SCOPES))]
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


class ApiKey(Struct, frozen=True, omit_defaults=True):
    """A key as it is kept. `key` is the key itself, which is shown once: by the answer that makes it."""

    id: str
    name: str
    scopes: list[Scope]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    key: str | UnsetType = UNSET


class KeyPage(Struct, frozen=True):
    items: list[ApiKey]
    next: str | None


async def list_keys(call: Call[requests.PageQuery, None]) -> Reply:
    found, cursor = await call.resource(CREDENTIALS).page(call.tenant, call.query.limit, call.query.cursor)
    return Reply(KeyPage([_shown(key) for key in found], cursor))


async def create_key(call: Call[Any, NewKey]) -> Reply:
    """201. Nobody can give away more than they have: a key with `admin` alone makes keys with `admin` alone."""
    body = call.body
    for number, scope in enumerate(body.scopes):
        if scope not in call.who.scopes:
            raise invalid(Fault("is a scope that whoever asks does not have", pointer=f"/scopes/{number}"))
    expires = None if body.expires_at is None else body.expires_at.astimezone(UTC)
    if expires is not None and expires <= now():
        raise invalid(Fault("must be in the future", pointer="/expires_at"))
    made, key = await call.resource(CREDENTIALS).create_key(
        call.tenant, body.name, frozenset(body.scopes), expires, call.principal
    )
    return Reply(_shown(made, key), headers={"Location": f"{_COLLECTION}/{made.id}", "Cache-Control": "no-store"})


async def get_key(call: Call[Any, None]) -> Reply:
    return Reply(_shown(await call.resource(CREDENTIALS).get(call.tenant, call.params["key_id"])))


async def revoke_key(call: Call[Any, None]) -> Reply:
    """204, again too. Sessions and tickets that came from it end with it, and so do their streams."""
    ended = await call.resource(CREDENTIALS).revoke_key(call.tenant, call.params["key_id"], call.principal)
    call.resource(AUTHENTICATION).forget(ended)
    return Reply(status=204)


def _shown(key: Credential, secret: str | UnsetType = UNSET) -> ApiKey:
    scopes = [scope for scope in SCOPES if scope in key.scopes]
    return ApiKey(key.id, key.name, scopes, key.created_by, key.created_at, key.expires_at, key.revoked_at, secret)


ROUTES = (
    Route(
        method="GET",
        path=_COLLECTION,
        handler=list_keys,
        summary="API keys by id, those that have ended too",
        tag="Credentials",
        query=requests.PageQuery,
        response=KeyPage,
        problems=(UNAVAILABLE,),
        access="admin",
    ),
    Route(
        method="POST",
        path=_COLLECTION,
        handler=create_key,
        summary="Make an API key",
        tag="Credentials",
        body=NewKey,
        example={"name": "the back end", "scopes": ["read", "write"]},
        response=ApiKey,
        status=201,
        headers={"Location": "Where the key is."},
        problems=(UNAVAILABLE,),
        access="admin",
        keyed=False,
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=get_key,
        summary="One API key, without its secret",
        tag="Credentials",
        response=ApiKey,
        problems=(NOT_FOUND, UNAVAILABLE),
        access="admin",
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=revoke_key,
        summary="Revoke an API key, and all that came from it",
        tag="Credentials",
        status=204,
        problems=(NOT_FOUND, UNAVAILABLE),
        access="admin",
        keyed=False,
    ),
)
