"""Who did what and when: changes of keys and agents, and deletions, each in the transaction of what was done.

Nothing here ever changes or removes a row. Secrets and texts are in none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from msgspec import Struct
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.database import Database
from storage.deed import Deed
from storage.records import new_id, now
from storage.rows import from_time, to_time
from storage.tables import audit
from storage.url import DialectName

_PAGE = 500


class AuditEntry(Struct, frozen=True):
    """A deed that was done."""

    at: datetime
    tenant: str
    principal: str
    action: str
    subject: str


def audit_row(tenant: str, deed: Deed, dialect: DialectName) -> dict[str, Any]:
    """The deed's row, as of now."""
    return {
        "id": new_id(),
        "at": to_time(now(), dialect),
        "tenant": tenant,
        "principal": deed.principal,
        "action": deed.action,
        "subject": deed.subject,
    }


async def record(connection: AsyncConnection, tenant: str, deed: Deed, dialect: DialectName) -> None:
    """Notes the deed in the transaction that does it."""
    await connection.execute(insert(audit).values(**audit_row(tenant, deed, dialect)))


async def entries(database: Database, tenant: str | None, since: datetime | None) -> AsyncIterator[AuditEntry]:
    """All of them, or those of a tenant, or since a time; oldest first."""
    after = ""
    while True:
        statement = select(audit).order_by(audit.c.id).limit(_PAGE)
        if after:
            statement = statement.where(audit.c.id > after)
        if tenant is not None:
            statement = statement.where(audit.c.tenant == tenant)
        if since is not None:
            statement = statement.where(audit.c.at >= to_time(since, database.dialect))
        async with database.transaction("audit.read") as connection:
            rows = (await connection.execute(statement)).all()
        for row in rows:
            yield AuditEntry(from_time(row.at), row.tenant, row.principal, row.action, row.subject)
        if len(rows) < _PAGE:
            return
        after = rows[-1].id
