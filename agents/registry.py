"""The registry: a tenant's own agents, and the shipped ones that it has neither overridden nor hidden."""

from __future__ import annotations

from typing import Final

import msgspec

from agents.agent import Agent, AgentProfile
from agents.shipped import SHIPPED
from storage.agents import AgentRow, AgentRows
from storage.database import Database
from storage.deed import SYSTEM
from storage.errors import NotFound
from storage.idempotency import Answer, WriteKey

__all__ = ["SHIPPED", "Registry"]

_decode: Final = msgspec.json.Decoder(Agent).decode


class Registry:
    def __init__(self, database: Database) -> None:
        self._rows = AgentRows(database, frozenset(SHIPPED))

    async def page(self, tenant: str, limit: int, cursor: str | None) -> tuple[list[Agent], str | None]:
        """Agents by id, and the cursor of the next page. Raises `InvalidCursor`."""
        found = {agent_id: agent for agent_id, agent in SHIPPED.items() if agent_id > (cursor or "")}
        for row in await self._rows.page(tenant, limit, cursor):
            if row.hidden:
                found.pop(row.id, None)
            else:
                found[row.id] = _agent(row)
        ids = sorted(found)
        items = [found[agent_id] for agent_id in ids[:limit]]
        return items, items[-1].id if len(ids) > limit else None

    async def get(self, tenant: str, agent_id: str) -> Agent:
        """Raises `NotFound`."""
        row = await self._rows.get(tenant, agent_id)
        if row is not None and not row.hidden:
            return _agent(row)
        shipped = SHIPPED.get(agent_id)
        if row is not None or shipped is None:
            raise NotFound("agent")
        return shipped

    async def put(
        self, tenant: str, agent_id: str, profile: AgentProfile, key: WriteKey | None, by: str = SYSTEM
    ) -> Answer:
        """201 with the agent when the tenant had none of this id, else 200. Raises `KeyReused`."""
        document = msgspec.json.encode(Agent.of(agent_id, profile))
        return await self._rows.put(tenant, agent_id, document, key, by)

    async def delete(self, tenant: str, agent_id: str, key: WriteKey | None, by: str = SYSTEM) -> Answer:
        """204. A shipped agent is hidden from this tenant for good. Raises `NotFound`, `KeyReused`."""
        return await self._rows.delete(tenant, agent_id, key, by)


def _agent(row: AgentRow) -> Agent:
    return _decode(row.document)
