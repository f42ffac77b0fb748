"""What commands on the database have in common: how they refuse arguments, and what they say when it cannot be done."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

from metrics.operations import Unobserved
from server import logs
from storage import migrate
from storage.config import StorageConfig
from storage.database import Database
from storage.driver_errors import as_storage_error


class Parser(argparse.ArgumentParser):
    """Exits with 2 and one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}.\n")


def carry_out(config: StorageConfig, work: Callable[[], None]) -> int:
    """0 when it is done; 1, with one sentence, when the database does not let it."""
    logs.configure("WARNING")
    try:
        work()
    except Exception as error:
        known = as_storage_error(error)
        if known is None:
            raise
        print(f"{config.url}: {known}.", file=sys.stderr)
        return 1
    return 0


@asynccontextmanager
async def opened(config: StorageConfig) -> AsyncIterator[Database]:
    """The database, its schema up to date. Raises storage's errors."""
    await asyncio.to_thread(migrate.upgrade, config)  # raises where a database that is starting would try again
    database = Database(config, Unobserved())
    await database.start()
    try:
        async with asyncio.timeout(config.connect_timeout + config.command_timeout):
            await database.wait_until_ready()
        yield database
    finally:
        await database.close()
