"""PostgreSQL's statistics of tables that have grown.

A statement is planned for the size that its tables had when they were looked at last, and the plan is kept until they
are looked at again. For a table of a few rows to scan all of it is as good as any index; a minute later, when
autovacuum has its turn, it may have a million. So a table that has doubled is looked at at once (decision 17).
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from storage.database import Database
from storage.errors import StorageError
from storage.tables import metadata

log = structlog.get_logger(__name__)

_PERIOD = 2.0  # seconds
_LONGEST_PAUSE = 60.0  # where it does not help: the role may not, or somebody else has the table
_SMALL = 32  # pages that are scanned in no time

_GROWN = (
    "SELECT relname FROM pg_class WHERE oid = ANY(SELECT to_regclass(name) FROM unnest($1::text[]) AS name)"
    " AND pg_relation_size(oid) / current_setting('block_size')::int > 2 * greatest(relpages, 0) + $2 ORDER BY relname"
)


class Statistics:
    """Any number of processes may have one. A table that is being looked at already is passed over."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Looks now and then, on PostgreSQL: SQLite plans by its indexes."""
        if self._database.dialect == "postgresql":
            self._task = asyncio.create_task(self._run(), name="statistics")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        await self._database.wait_until_ready()
        pause = _PERIOD
        while True:
            grown = True
            try:
                grown = bool(await self._database.to_its_end(self.refresh()))
            except StorageError as error:
                log.warning("statistics wait for the database", error=str(error))
            except Exception:
                log.exception("statistics failed")
            # What was looked at and is still found too large will not be helped by looking again at once.
            pause = min(pause * 2, _LONGEST_PAUSE) if grown else _PERIOD
            await asyncio.sleep(pause)

    async def refresh(self) -> list[str]:
        """Has the database look at the tables that have doubled since it did. Returns their names."""
        async with (
            self._database.operation("housekeeping.statistics"),
            self._database.driver() as driver,
            driver.transaction() if self._database.config.pgbouncer else contextlib.nullcontext(),
        ):
            grown = [row[0] for row in await driver.fetch(_GROWN, list(metadata.tables), _SMALL)]
            if grown:
                await driver.execute(f"ANALYZE (SKIP_LOCKED) {', '.join(grown)}")
        return grown
