"""The two engines: an asynchronous one that requests use, and a synchronous one for migrations and admin commands."""

from __future__ import annotations

import sqlite3
import time
from contextlib import nullcontext
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
from sqlalchemy import AsyncAdaptedQueuePool, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from storage.config import StorageConfig

# A connection that was in use a moment ago is not asked whether it lives: that would double the round trips of a busy
# server. One that the server closed says so itself, at no cost.
_RESTED = 5.0

# FULL: a seq that was acknowledged and lost in a power cut would be issued twice (NORMAL does not sync each commit).
_SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-16384")


def sqlite_pragmas(busy_seconds: float) -> list[str]:
    return [
        f"PRAGMA busy_timeout={int(busy_seconds * 1000)}",
        *(f"PRAGMA {name}" for name in _SQLITE_PRAGMAS),
    ]


def async_engine(config: StorageConfig) -> AsyncEngine:
    """A pool of at most `pool_size` connections; asking for one more waits `pool_timeout`.

    What only reads says so with the execution option `only_reads`, as on the other engine.
    """
    options: dict[str, Any] = {
        "poolclass": AsyncAdaptedQueuePool,
        "pool_size": config.pool_size,
        "max_overflow": 0,
        "pool_timeout": config.pool_timeout,
        "pool_reset_on_return": None,  # every transaction ends in its own block; on SQLite a reset is a thread hop
        "hide_parameters": True,  # in the text of errors
        "pool_use_lifo": True,  # idle connections rest, and are pinged when they are needed again
    }
    if config.url.dialect == "postgresql":
        if config.pgbouncer:
            # The adapter's own prepared statements: none is kept, and none takes a name that another client has taken.
            options["connect_args"] = {
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": lambda: f"__swarm_{uuid4()}__",
            }
        engine = create_async_engine("postgresql+asyncpg://", async_creator=_asyncpg_creator(config), **options)
        _give_out_what_lives(engine, ping=config.pre_ping)
        return engine
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{config.url.dsn}", connect_args={"isolation_level": None}, **options
    )
    _prepare_sqlite(engine.sync_engine, config)
    return engine


def sync_engine(config: StorageConfig) -> Engine:
    """No pool: what uses it is rare, and must not hold connections that requests could use."""
    if config.url.dialect == "postgresql":

        def connect() -> psycopg.Connection[Any]:
            return psycopg.connect(
                config.url.dsn, connect_timeout=max(2, int(config.connect_timeout)), prepare_threshold=None
            )

        return create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool, hide_parameters=True)
    engine = create_engine(
        f"sqlite:///{config.url.dsn}",
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={"isolation_level": None},
    )
    _prepare_sqlite(engine, config)
    return engine


def _asyncpg_creator(config: StorageConfig) -> Any:
    async def connect(**adapter: Any) -> asyncpg.Connection[Any]:
        options: dict[str, Any] = {
            "timeout": config.connect_timeout,
            "command_timeout": config.command_timeout,
        }
        if config.pgbouncer:
            # In transaction mode the next statement may run on another server connection, which knows none of ours.
            options["statement_cache_size"] = 0
        else:
            # Hot statements are short: planning them for just-in-time compilation would cost more than they do.
            options["server_settings"] = {"application_name": "swarm", "jit": "off"}
        connection: asyncpg.Connection[Any] = await asyncpg.connect(config.url.dsn, **options)
        # Ids are text everywhere in the code: the driver's UUID objects would only be made to be taken apart again.
        # It asks the server for the type, which behind pgbouncer takes a transaction.
        async with connection.transaction() if config.pgbouncer else nullcontext():
            await connection.set_type_codec("uuid", encoder=str, decoder=str, schema="pg_catalog", format="text")
        return connection

    return connect


def _give_out_what_lives(engine: AsyncEngine, *, ping: bool) -> None:
    """A connection that is closed is replaced; with `ping`, one that has rested is asked whether it lives."""
    dialect = engine.sync_engine.dialect

    def leave(connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        entry.info["left"] = time.monotonic()

    def enter(connection: DBAPIConnection, entry: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
        driver = entry.driver_connection
        if driver is None or driver.is_closed():
            raise DisconnectionError("closed by the server")  # makes the pool connect anew
        if ping and time.monotonic() - entry.info.get("left", 0.0) > _RESTED:
            try:
                dialect.do_ping(connection)
            except Exception as error:
                raise DisconnectionError("did not answer") from error

    event.listen(engine.sync_engine, "checkin", leave)
    event.listen(engine.sync_engine, "checkout", enter)


def _execute_patiently(cursor: DBAPICursor, pragma: str, seconds: float) -> None:
    """Of several that make a new database's first connections at once, all but one find it locked when they ask for the
    write-ahead log: SQLite's own busy timeout does not hold there. Once it has one, nobody waits here again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            cursor.execute(pragma)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _prepare_sqlite(engine: Engine, config: StorageConfig) -> None:
    def connect(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        busy_seconds = config.command_timeout / 2
        cursor = connection.cursor()
        for pragma in sqlite_pragmas(busy_seconds):
            _execute_patiently(cursor, pragma, busy_seconds)
        cursor.close()

    def begin(connection: Connection) -> None:
        # A plain BEGIN takes the write lock at the first write, on what it read before: another writer in between
        # makes it fail, or its update lost. What only reads waits for no writer.
        only_reads = connection.get_execution_options().get("only_reads", False)
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
