"""PostgreSQL's statistics of tables that have grown.

A statement is planned for the size that its tables had when they were looked at last, and the plan is kept until they
are looked at again. For a table of a few rows to scan all of it is as good as any index; a minute later, when
autovacuum has its turn, it may have a million. So a table that has doubled is looked at at once (decision 17).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from storage.database import Database
from storage.recurring import Recurring
from storage.tables import metadata

_PERIOD = 2.0  # seconds
_LONGEST_PAUSE = 60.0  # where it does not help: the role may not, or somebody else has the table
_SMALL = 32  # pages that are scanned in no time
_LONGEST_LOOK = 300.0  # seconds: a sample is read from all over the table, and its disk may be slow

_GROWN = (
    "SELECT relname FROM pg_class WHERE oid = ANY(SELECT to_regclass(name) FROM unnest($1::text[]) AS name)"
    " AND pg_relation_size(oid) / current_setting('block_size')::int > 2 * greatest(relpages, 0) + $2 ORDER BY relname"
)


class Statistics(Recurring):
    """Any number of processes may have one. A table that is being looked at already is passed over."""

    name = "statistics"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pause = _PERIOD

    async def start(self) -> None:
        """On PostgreSQL: SQLite plans by its indexes."""
        if self._database.dialect == "postgresql":
            await super().start()

    async def begin(self) -> None:
        await self._database.wait_until_ready()

    async def turn(self) -> None:
        # What was looked at and is found too large again will not be helped by looking at once.
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        if not await self.refresh():
            self._pause = _PERIOD

    def pause(self) -> float:
        return self._pause

    async def refresh(self) -> list[str]:
        """Has the database look at the tables that have doubled since it did. Returns their names."""
        async with self._database.operation("housekeeping.statistics"), self._database.driver() as driver:
            try:
                async with driver.transaction() if self._database.config.pgbouncer else contextlib.nullcontext():
                    return await _refresh(driver)
            except asyncio.CancelledError:
                # The process ends, and does not wait for it. Nobody may be given a connection that still does.
                driver.terminate()
                raise


async def _refresh(driver: Any) -> list[str]:
    grown = [row[0] for row in await driver.fetch(_GROWN, list(metadata.tables), _SMALL)]
    if grown:
        await driver.execute(f"ANALYZE (SKIP_LOCKED) {', '.join(grown)}", timeout=_LONGEST_LOOK)
    return grown
