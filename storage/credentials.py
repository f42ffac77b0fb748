"""Credentials: API keys, sessions of browsers, and tickets.

A credential is `swarm_<kind>_<id>_<secret>`, drawn at random and shown once; kept is the secret's digest. A secret of
256 random bits cannot be guessed, so that a plain SHA-256 of it protects it as well as a slow one would.

A session or a ticket comes from another credential, lives no longer than that one, and is revoked with it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import BigInteger, and_, bindparam, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.audit import record
from storage.database import Database
from storage.deed import Deed
from storage.errors import CredentialEnded, InvalidCursor, NotFound
from storage.records import now
from storage.rows import from_time, to_time
from storage.statement import RawStatement, Statement, array_parameter
from storage.tables import credentials

Kind = Literal["key", "session", "ticket"]
Scope = Literal["read", "write", "run", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "run", "admin")

_TOKEN = re.compile(r"swarm_(key|session|ticket)_([0-9a-f]{16})_([0-9a-f]{64})")
_ID = re.compile(r"[0-9a-f]{16}")
# What a session's or a ticket's row is kept for after its end: nobody asks for it any more.
_KEPT = timedelta(days=1)
# A session slides on when this much of its life is over: not with each request.
_SLIDE = 0.05

_c = credentials.c
_FIND = Statement("credentials.find", select(credentials).where(_c.id == bindparam("id")))
_GET = Statement(
    "credentials.get",
    select(credentials).where(_c.tenant == bindparam("tenant"), _c.id == bindparam("id"), _c.kind == "key"),
)
_PAGE = Statement(
    "credentials.page",
    select(credentials)
    .where(_c.tenant == bindparam("tenant"), _c.kind == "key", _c.id > bindparam("after"))
    .order_by(_c.id)
    .limit(bindparam("limit", type_=BigInteger)),
)
_ENDED = RawStatement(
    "credentials.ended",
    postgresql=(
        "SELECT i.id FROM unnest($1::text[]) AS i (id) LEFT JOIN credentials c ON c.id = i.id"
        " WHERE c.id IS NULL OR c.revoked_at IS NOT NULL OR c.expires_at <= $2"
    ),
    sqlite=(
        "SELECT i.value FROM json_each(?1) AS i LEFT JOIN credentials c ON c.id = i.value"
        " WHERE c.id IS NULL OR c.revoked_at IS NOT NULL OR c.expires_at <= ?2"
    ),
    parameters=["ids", "at"],
)


class Credential(Struct, frozen=True):
    """One as it is kept, without its secret. `conversations` of a ticket are those that it opens.

    A session slides, but ends no later than `ends_at`; so do the streams that a ticket has opened.
    """

    id: str
    kind: Kind
    tenant: str
    principal: str
    scopes: frozenset[Scope]
    name: str
    root: str
    parent: str | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    ends_at: datetime | None
    revoked_at: datetime | None
    conversations: frozenset[str] | None
    feed: bool


class Giver(Struct, frozen=True):
    """Whom a session or a ticket is given to: a principal, by the credential `id` (None where that has no row), which
    came from `root` and ends at `expires_at`."""

    tenant: str
    principal: str
    scopes: frozenset[Scope]
    root: str
    id: str | None
    expires_at: datetime | None


class Token(Struct, frozen=True):
    """A credential as its holder shows it, taken apart."""

    kind: Kind
    id: str
    digest: str


def parse_token(text: str) -> Token | None:
    """None for what was never given out as one."""
    found = _TOKEN.fullmatch(text)
    if found is None:
        return None
    kind, identifier, secret = found.groups()
    return Token(msgspec.convert(kind, Kind), identifier, _digest(secret))


def is_key_id(root: str) -> bool:
    """Whether what a credential came from in the end is a key, which revokes it, or something that has no row here."""
    return _ID.fullmatch(root) is not None


class Credentials:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, token: Token, slide: timedelta | None = None) -> Credential | None:
        """The credential, None unless it is as good as it was: not expired, not revoked, with that secret.

        A session that is used lives on for `slide` from now, but not beyond its end.
        """
        rows = await self._database.fetch(_FIND, id=token.id)
        if not rows:
            return None
        row, found = rows[0], _credential(rows[0])
        # In constant time, though it is a digest: how many of its first digits are right must not be told.
        if not hmac.compare_digest(_digest_of(row), token.digest) or found.kind != token.kind or _ended(found):
            return None
        if slide is not None and found.kind == "session":
            found = await self._slide(found, slide)
        return found

    async def _slide(self, found: Credential, life: timedelta) -> Credential:
        expires = now() + life
        if found.ends_at is not None:
            expires = min(expires, found.ends_at)
        if found.expires_at is None or expires - found.expires_at < life * _SLIDE:
            return found
        await self._database.to_its_end(self._set_expiry(found.id, expires))
        return msgspec.structs.replace(found, expires_at=expires)

    async def _set_expiry(self, credential_id: str, expires: datetime) -> None:
        async with self._database.transaction("credentials.slide") as connection:
            await connection.execute(
                update(credentials)
                .where(_c.id == credential_id, _c.revoked_at.is_(None))
                .values(expires_at=self._time(expires))
            )

    async def ended(self, ids: Sequence[str]) -> list[str]:
        """Those of the credentials that are expired, revoked or gone. One query, of all tenants."""
        dialect = self._database.dialect
        rows = await self._database.fetch(_ENDED, ids=array_parameter(dialect, list(ids)), at=to_time(now(), dialect))
        return [row[0] for row in rows]

    # Keys.

    async def create_key(
        self, tenant: str, name: str, scopes: frozenset[Scope], expires_at: datetime | None, created_by: str
    ) -> tuple[Credential, str]:
        """The key as it is kept, and as it is shown this once."""
        return await self._database.to_its_end(self._create_key(tenant, name, scopes, expires_at, created_by))

    async def _create_key(
        self, tenant: str, name: str, scopes: frozenset[Scope], expires_at: datetime | None, created_by: str
    ) -> tuple[Credential, str]:
        identifier = secrets.token_hex(8)
        made = Credential(
            id=identifier,
            kind="key",
            tenant=tenant,
            principal=f"key:{identifier}",
            scopes=scopes,
            name=name,
            root=identifier,
            parent=None,
            created_by=created_by,
            created_at=now(),
            expires_at=expires_at,
            ends_at=None,
            revoked_at=None,
            conversations=None,
            feed=False,
        )
        async with self._database.transaction("credentials.create_key") as connection:
            shown = await self._insert(connection, made)
            await record(connection, tenant, Deed(created_by, "key.create", identifier), self._database.dialect)
        return made, shown

    async def page(self, tenant: str, limit: int, cursor: str | None) -> tuple[list[Credential], str | None]:
        """The tenant's keys by id, those that have ended too, and the cursor of the next page. Raises
        `InvalidCursor`."""
        if cursor is not None and _ID.fullmatch(cursor) is None:
            raise InvalidCursor("not a cursor of this list")
        rows = await self._database.fetch(_PAGE, tenant=tenant, after=cursor or "", limit=limit + 1)
        found = [_credential(row) for row in rows]
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def get(self, tenant: str, key_id: str) -> Credential:
        """Raises `NotFound`."""
        rows = await self._database.fetch(_GET, tenant=tenant, id=key_id)
        if not rows:
            raise NotFound("key")
        return _credential(rows[0])

    async def revoke_key(self, tenant: str, key_id: str, by: str) -> list[str]:
        """Revokes a key and all that came from it; the ids of what ended now. Raises `NotFound`."""
        return await self._database.to_its_end(self._revoke_key(tenant, key_id, by))

    async def _revoke_key(self, tenant: str, key_id: str, by: str) -> list[str]:
        async with self._database.transaction("credentials.revoke_key") as connection:
            key = await connection.execute(
                select(_c.revoked_at).where(_c.tenant == tenant, _c.id == key_id, _c.kind == "key").with_for_update()
            )
            row = key.one_or_none()
            if row is None:
                raise NotFound("key")
            if row.revoked_at is None:
                await record(connection, tenant, Deed(by, "key.revoke", key_id), self._database.dialect)
            # An update that has waited for who was giving one away does not see what that has written: the next does.
            ended: list[str] = []
            while found := await self._revoke(connection, and_(_c.tenant == tenant, _c.root == key_id)):
                ended += found
            return ended

    # Sessions and tickets.

    async def create_session(self, giver: Giver, life: timedelta, most: timedelta) -> tuple[Credential, str]:
        """A session that ends when nobody has used it for `life`, and after `most` in any case. Raises
        `CredentialEnded`."""
        at = now()
        end = at + most if giver.expires_at is None else min(at + most, giver.expires_at)
        made = self._given("session", giver, min(at + life, end), end)
        return await self._database.to_its_end(self._give(made, giver, "session.create"))

    async def create_ticket(
        self, giver: Giver, conversations: frozenset[str], feed: bool, life: timedelta
    ) -> tuple[Credential, str]:
        """A ticket that opens streams of these conversations, for `life`. Raises `CredentialEnded`."""
        at = now()
        expires = at + life if giver.expires_at is None else min(at + life, giver.expires_at)
        made = msgspec.structs.replace(
            self._given("ticket", giver, expires, giver.expires_at),
            scopes=giver.scopes & {"read"},
            conversations=conversations,
            feed=feed,
        )
        return await self._database.to_its_end(self._give(made, giver, None))

    def _given(self, kind: Kind, giver: Giver, expires: datetime, ends: datetime | None) -> Credential:
        return Credential(
            id=secrets.token_hex(8),
            kind=kind,
            tenant=giver.tenant,
            principal=giver.principal,
            scopes=giver.scopes,
            name="",
            root=giver.root,
            parent=giver.id,
            created_by=giver.principal,
            created_at=now(),
            expires_at=expires,
            ends_at=ends,
            revoked_at=None,
            conversations=None,
            feed=False,
        )

    async def _give(
        self, made: Credential, giver: Giver, action: Literal["session.create"] | None
    ) -> tuple[Credential, str]:
        async with self._database.transaction(f"credentials.create_{made.kind}") as connection:
            if giver.id is not None:
                # Locked: whoever revokes it meanwhile waits, and revokes this one too.
                found = await connection.execute(
                    select(_c.id)
                    .where(_c.id == giver.id, _c.tenant == giver.tenant, _c.revoked_at.is_(None))
                    .with_for_update()
                )
                if found.one_or_none() is None:
                    raise CredentialEnded
            shown = await self._insert(connection, made)
            if action is not None:
                deed = Deed(made.principal, action, made.id)
                await record(connection, made.tenant, deed, self._database.dialect)
        return made, shown

    async def end_session(self, tenant: str, session_id: str, by: str) -> list[str]:
        """Ends it with the tickets and the sessions that came from it; the ids of what ended now."""
        return await self._database.to_its_end(self._end_session(tenant, session_id, by))

    async def _end_session(self, tenant: str, session_id: str, by: str) -> list[str]:
        async with self._database.transaction("credentials.end_session") as connection:
            # One generation after the other: while this one's rows are locked, nobody is given anything for them.
            found = ended = await self._revoke(connection, and_(_c.tenant == tenant, _c.id == session_id))
            while found:
                found = await self._revoke(connection, and_(_c.tenant == tenant, _c.parent.in_(found)))
                ended = ended + found
            if session_id in ended:
                await record(connection, tenant, Deed(by, "session.end", session_id), self._database.dialect)
            return ended

    async def forget(self) -> None:
        """Removes sessions and tickets that ended long ago. Keys stay, so that one can see that there were some."""
        long_ago = self._time(now() - _KEPT)
        async with self._database.transaction("housekeeping.credentials") as connection:
            await connection.execute(
                delete(credentials).where(_c.kind != "key", or_(_c.expires_at < long_ago, _c.revoked_at < long_ago))
            )

    async def _insert(self, connection: AsyncConnection, made: Credential) -> str:
        secret = secrets.token_hex(32)
        await connection.execute(
            insert(credentials).values(
                id=made.id,
                kind=made.kind,
                tenant=made.tenant,
                principal=made.principal,
                scopes=" ".join(sorted(made.scopes)),
                digest=_digest(secret),
                name=made.name,
                root=made.root,
                parent=made.parent,
                conversations=None
                if made.conversations is None
                else msgspec.json.encode(sorted(made.conversations)).decode(),
                feed=made.feed,
                created_by=made.created_by,
                created_at=self._time(made.created_at),
                expires_at=self._time(made.expires_at),
                ends_at=self._time(made.ends_at),
            )
        )
        return f"swarm_{made.kind}_{made.id}_{secret}"

    async def _revoke(self, connection: AsyncConnection, which: Any) -> list[str]:
        ended = await connection.execute(
            update(credentials)
            .where(which, _c.revoked_at.is_(None))
            .values(revoked_at=self._time(now()))
            .returning(_c.id)
        )
        return list(ended.scalars())

    def _time(self, at: datetime | None) -> Any:
        return None if at is None else to_time(at, self._database.dialect)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _digest_of(row: Any) -> str:
    digest: str = row[_COLUMNS.index("digest")]
    return digest


_COLUMNS = [column.name for column in credentials.columns]


def _credential(row: Sequence[Any]) -> Credential:
    of = dict(zip(_COLUMNS, row, strict=True))
    return Credential(
        id=of["id"],
        kind=of["kind"],
        tenant=of["tenant"],
        principal=of["principal"],
        scopes=frozenset(of["scopes"].split()),
        name=of["name"],
        root=of["root"],
        parent=of["parent"],
        created_by=of["created_by"],
        created_at=from_time(of["created_at"]),
        expires_at=of["expires_at"] and from_time(of["expires_at"]),
        ends_at=of["ends_at"] and from_time(of["ends_at"]),
        revoked_at=of["revoked_at"] and from_time(of["revoked_at"]),
        conversations=of["conversations"] and frozenset(msgspec.json.decode(of["conversations"])),
        feed=bool(of["feed"]),
    )


def _ended(found: Credential) -> bool:
    return found.revoked_at is not None or (found.expires_at is not None and found.expires_at <= now())
