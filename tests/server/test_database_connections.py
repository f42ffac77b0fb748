"""Connections to PostgreSQL that break: what the pool gives out afterwards; and what a commit's durability rests on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from msgspec import Raw
from sqlalchemy import text

from metrics.operations import Unobserved
from storage.config import StorageConfig
from storage.conversations import Conversations
from storage.database import Database
from storage.errors import StorageUnavailable
from storage.url import parse_database_url
from tests.postgres_server import PostgresServer
from tests.tcp_proxy import TcpProxy

TENANT = "default"


@asynccontextmanager
async def _opened(url: str, *, pre_ping: bool = True, command_timeout: float = 10.0) -> AsyncIterator[Database]:
    config = StorageConfig(
        parse_database_url(url), pool_size=1, pre_ping=pre_ping, command_timeout=command_timeout, connect_timeout=5.0
    )
    database = Database(config, Unobserved())
    await database.start()
    try:
        async with asyncio.timeout(30):
            await database.wait_until_ready()
            yield database
    finally:
        await database.close()


async def _read(database: Database) -> None:
    await Conversations(database).page(TENANT, 1, None)


@pytest.mark.parametrize("pre_ping", [True, False], ids=["pinged", "not pinged"])
async def test_a_connection_that_was_closed_is_not_given_out_again(
    postgres: PostgresServer, postgresql_url: str, pre_ping: bool
) -> None:
    async with TcpProxy("127.0.0.1", postgres.port) as proxy:
        through = postgresql_url.replace(f":{postgres.port}/", f":{proxy.port}/")
        async with _opened(through, pre_ping=pre_ping) as database:
            await _read(database)
            proxy.cut_all()
            with suppress(StorageUnavailable):  # it may not have noticed yet
                await _read(database)
            await _read(database)
            await _read(database)


@pytest.mark.parametrize("pre_ping", [True, False], ids=["pinged", "not pinged"])
async def test_a_connection_whose_answer_never_came_is_not_given_out_again(
    postgres: PostgresServer, postgresql_url: str, pre_ping: bool
) -> None:
    """As when the other machine is gone without a word: nothing says that the connection is dead."""
    async with TcpProxy("127.0.0.1", postgres.port) as proxy:
        through = postgresql_url.replace(f":{postgres.port}/", f":{proxy.port}/")
        async with _opened(through, pre_ping=pre_ping, command_timeout=0.5) as database:
            await _read(database)
            proxy.on_client_data = lambda data: b""
            with pytest.raises(StorageUnavailable):
                await _read(database)
            proxy.on_client_data = None
            await _read(database)


async def test_a_transaction_is_flushed_whatever_the_servers_default_is(postgresql_url: str) -> None:
    async with _opened(postgresql_url) as database:
        name = postgresql_url.rpartition("/")[2]
        async with database.engine.begin() as connection:
            await connection.execute(text(f'ALTER DATABASE "{name}" SET synchronous_commit = off'))
        await database.engine.dispose()
        seen = "SELECT current_setting('synchronous_commit')"
        async with database.engine.connect() as connection:
            assert (await connection.execute(text(seen))).scalar_one() == "off"
        async with database.transaction("test") as connection:
            assert (await connection.execute(text(seen))).scalar_one() == "on"
        await Conversations(database).create(TENANT, None, Raw(b"{}"), None)
