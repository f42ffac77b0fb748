"""What tenants changed about their agents, a row for each that they made, overrode or hid.

Shipped agents have no rows.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from msgspec import Struct
from sqlalchemy import BigInteger, ColumnElement, and_, bindparam, collate, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.audit import record
from storage.database import Database
from storage.deed import SYSTEM, Deed
from storage.errors import Contended, InvalidCursor, NotFound
from storage.idempotency import Answer, WriteKey, once
from storage.records import now
from storage.rows import to_time
from storage.statement import Statement
from storage.tables import agents
from storage.url import DialectName

_a = agents.c
_GET = Statement(
    "agents.get",
    select(_a.id, _a.hidden, _a.document).where(_a.tenant == bindparam("tenant"), _a.id == bindparam("id")),
)


def _page(collation: str) -> Statement:
    # By code points on any server: a database's own order may pass over "_" and "-".
    by_id = collate(_a.id, collation)
    return Statement(
        "agents.page",
        select(_a.id, _a.hidden, _a.document)
        .where(_a.tenant == bindparam("tenant"), by_id > bindparam("after"))
        .order_by(by_id)
        .limit(bindparam("limit", type_=BigInteger)),
    )


_PAGE: Final[dict[DialectName, Statement]] = {"postgresql": _page("C"), "sqlite": _page("BINARY")}

_CURSOR = re.compile(r"[a-z0-9_-]{1,64}")  # agents are listed by id, so an id says where a page begins

_ATTEMPTS = 5  # of a write whose row others make and delete at the same time


class AgentRow(Struct, frozen=True):
    """`document` is the agent's JSON; it means nothing when the agent is hidden."""

    id: str
    hidden: bool
    document: str


class AgentRows:
    """`shipped` are the ids that exist without a row; only those can be hidden."""

    def __init__(self, database: Database, shipped: frozenset[str]) -> None:
        self._database = database
        self._shipped = shipped

    async def page(self, tenant: str, limit: int, cursor: str | None) -> list[AgentRow]:
        """Rows behind the agent whose id the cursor is, by id. Raises `InvalidCursor`.

        Enough of them for a page with one to spare, however many are hidden.
        """
        if cursor is not None and _CURSOR.fullmatch(cursor) is None:
            raise InvalidCursor("not a cursor of this list")
        statement = _PAGE[self._database.dialect]
        wanted = limit + 1 + len(self._shipped)
        rows = await self._database.fetch(statement, tenant=tenant, after=cursor or "", limit=wanted)
        return [AgentRow(row[0], bool(row[1]), row[2]) for row in rows]

    async def get(self, tenant: str, agent_id: str) -> AgentRow | None:
        rows = await self._database.fetch(_GET, tenant=tenant, id=agent_id)
        return AgentRow(rows[0][0], bool(rows[0][1]), rows[0][2]) if rows else None

    async def put(self, tenant: str, agent_id: str, document: bytes, key: WriteKey | None, by: str = SYSTEM) -> Answer:
        """201 with the document when the tenant had no such agent, else 200. Raises `KeyReused`."""
        return await self._database.to_its_end(self._put(tenant, agent_id, document, key, by))

    async def _put(self, tenant: str, agent_id: str, document: bytes, key: WriteKey | None, by: str) -> Answer:
        async with self._database.transaction("agents.put") as connection:

            async def write() -> Answer:
                await record(connection, tenant, Deed(by, "agent.put", agent_id), self._database.dialect)
                text = document.decode()
                for _ in range(_ATTEMPTS):
                    if await self._insert(connection, tenant, agent_id, hidden=False, document=text):
                        return Answer(200 if agent_id in self._shipped else 201, document)
                    was_hidden = await self._lock(connection, tenant, agent_id)
                    if was_hidden is not None:
                        await connection.execute(
                            update(agents)
                            .where(_here(tenant, agent_id))
                            .values(hidden=False, document=text, updated_at=self._now())
                        )
                        return Answer(201 if was_hidden else 200, document)
                raise Contended("others kept changing this agent")

            return await once(connection, tenant, key, write)

    async def delete(self, tenant: str, agent_id: str, key: WriteKey | None, by: str = SYSTEM) -> Answer:
        """204. Raises `NotFound`, `KeyReused`."""
        return await self._database.to_its_end(self._delete(tenant, agent_id, key, by))

    async def _delete(self, tenant: str, agent_id: str, key: WriteKey | None, by: str) -> Answer:
        shipped = agent_id in self._shipped
        async with self._database.transaction("agents.delete") as connection:

            async def write() -> Answer:
                # Rolled back with the rest when there is no such agent.
                await record(connection, tenant, Deed(by, "agent.delete", agent_id), self._database.dialect)
                for _ in range(_ATTEMPTS):
                    was_hidden = await self._lock(connection, tenant, agent_id)
                    if was_hidden or (was_hidden is None and not shipped):
                        raise NotFound("agent")
                    if was_hidden is None:
                        if await self._insert(connection, tenant, agent_id, hidden=True, document="{}"):
                            return Answer(204, b"")
                        continue
                    statement = (
                        update(agents).values(hidden=True, document="{}", updated_at=self._now())
                        if shipped
                        else delete(agents)
                    )
                    await connection.execute(statement.where(_here(tenant, agent_id)))
                    return Answer(204, b"")
                raise Contended("others kept changing this agent")

            return await once(connection, tenant, key, write)

    async def _insert(
        self, connection: AsyncConnection, tenant: str, agent_id: str, *, hidden: bool, document: str
    ) -> bool:
        """Whether there was no row: with another transaction's uncommitted one it waits for its end."""
        make = postgresql.insert(agents) if self._database.dialect == "postgresql" else sqlite.insert(agents)
        made = await connection.execute(
            make.values(
                tenant=tenant, id=agent_id, hidden=hidden, document=document, updated_at=self._now()
            ).on_conflict_do_nothing()
        )
        return made.rowcount == 1

    async def _lock(self, connection: AsyncConnection, tenant: str, agent_id: str) -> bool | None:
        """Locks the row and says whether it hides the agent; None when there is no row."""
        found = await connection.execute(select(_a.hidden).where(_here(tenant, agent_id)).with_for_update())
        return found.scalar_one_or_none()

    def _now(self) -> datetime | str:
        return to_time(now(), self._database.dialect)


def _here(tenant: str, agent_id: str) -> ColumnElement[bool]:
    return and_(_a.tenant == tenant, _a.id == agent_id)
