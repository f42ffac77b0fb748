"""Where logs begin and end now, asked of the database by many at once."""

from __future__ import annotations

import asyncio

from storage.log import Log
from storage.records import Heads


class HeadReader:
    """All who ask of one tenant while a query is under way share the next one, which begins after they have asked."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._turn = asyncio.Lock()
        self._next: dict[str, tuple[dict[str, None], asyncio.Task[Heads]]] = {}

    async def read(self, tenant: str, conversation_id: str) -> Heads:
        """Floor and head of that conversation, and perhaps of others. Raises storage's errors."""
        following = self._next.get(tenant)
        if following is None:
            ids: dict[str, None] = {}
            reading = asyncio.create_task(self._read(tenant, ids), name="read heads")
            reading.add_done_callback(_retrieve)
            following = self._next[tenant] = ids, reading
        ids, reading = following
        ids[conversation_id] = None
        # Shielded: others wait for the same one.
        return await asyncio.shield(reading)

    async def _read(self, tenant: str, ids: dict[str, None]) -> Heads:
        async with self._turn:
            del self._next[tenant]
            return await self._log.heads(tenant, list(ids))


def _retrieve(reading: asyncio.Task[Heads]) -> None:
    """Whoever waits has its error; all who did may have gone away."""
    if not reading.cancelled():
        reading.exception()
