"""Idempotency keys for writes that take no seq; those that do keep theirs in the group commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import and_, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.append import Moved, Seen, WriteKey
from storage.database import Database
from storage.errors import KeyReused
from storage.records import now
from storage.rows import to_time
from storage.statement import Statement
from storage.tables import Time, idempotency_keys

__all__ = ["Answer", "Keys", "WriteKey", "once"]

KEY_LIFE = timedelta(hours=24)

_k = idempotency_keys.c
_FIND = Statement(
    "idempotency.find",
    select(
        _k.fingerprint, _k.status, _k.answer, _k.seq, _k.position, _k.lines, _k.running_hash, _k.last_position
    ).where(
        _k.tenant == bindparam("tenant"),
        _k.principal == bindparam("principal"),
        _k.route == bindparam("route"),
        _k.key == bindparam("key"),
        _k.created_at > bindparam("since", type_=Time),
    ),
)


class Answer(Struct, frozen=True):
    """What a write answers: an HTTP status and an encoded JSON body (empty for 204)."""

    status: int
    body: bytes
    replayed: bool = False


class Keys:
    """Keys as they are known already."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, tenant: str, key: WriteKey) -> Seen | None:
        """The answer that was given under the key. Raises `KeyReused` when it was given to another request."""
        row = await self._row(tenant, key)
        if row is None:
            return None
        status, answer, seq, position = row[1:5]
        return Seen(status, answer.encode(), seq, position)

    async def progress(self, tenant: str, key: WriteKey) -> Moved | None:
        """How far an import came under the key. Raises `KeyReused`."""
        row = await self._row(tenant, key)
        if row is None:
            return None
        seq, position, lines, running_hash, last_position = row[3:8]
        return Moved(lines, running_hash, seq, position, last_position)

    async def _row(self, tenant: str, key: WriteKey) -> Sequence[Any] | None:
        since = to_time(now() - KEY_LIFE, self._database.dialect)
        rows = await self._database.fetch(
            _FIND, tenant=tenant, principal=key.principal, route=key.route, key=key.key, since=since
        )
        if not rows:
            return None
        if rows[0][0] != key.fingerprint:
            raise KeyReused("the idempotency key came with another request before")
        row: Sequence[Any] = rows[0]
        return row


async def once(
    connection: AsyncConnection, tenant: str, key: WriteKey | None, write: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Carries out `write` unless its key was used before: then that answer, again. Inside the write's own transaction.

    A concurrent duplicate waits for the first at the insertion of the key's row. Raises `KeyReused` when the key came
    with another request.
    """
    if key is None:
        return await write()
    table, at = idempotency_keys, now()
    dialect = connection.dialect.name
    here = and_(
        table.c.tenant == tenant,
        table.c.principal == key.principal,
        table.c.route == key.route,
        table.c.key == key.key,
    )
    await connection.execute(delete(table).where(here, table.c.created_at <= to_time(at - KEY_LIFE, dialect)))
    insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    claimed = await connection.execute(
        insert.values(
            tenant=tenant,
            **asdict(key),
            status=0,
            answer="",
            seq=0,
            position=0,
            created_at=to_time(at, dialect),
        ).on_conflict_do_nothing()
    )
    if claimed.rowcount == 0:
        known = (await connection.execute(select(table).where(here))).one()
        if known.fingerprint != key.fingerprint:
            raise KeyReused("the idempotency key came with another request before")
        return Answer(known.status, known.answer.encode(), replayed=True)
    answer = await write()
    await connection.execute(table.update().where(here).values(status=answer.status, answer=answer.body.decode()))
    return answer
