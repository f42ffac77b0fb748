"""Migrations, through the synchronous engine and under a lock: any number of processes may start at once."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from storage.config import StorageConfig
from storage.engines import sync_engine
from storage.errors import StorageUnavailable

_SCRIPTS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x5377_6172_6D  # "Swarm": names our advisory lock in the database
_LOCK_WAIT = 60.0  # seconds; migrations of a large table take longer than others should wait


def upgrade(config: StorageConfig) -> str:
    """Brings the schema up to date and returns the log's epoch. A schema that is current is only read.

    Raises `StorageUnavailable` when another process holds the lock for longer than a minute.
    """
    engine = _engine(config)
    with engine.execution_options(only_reads=True).connect() as reader:
        if not _is_current(reader):
            with _lock(engine, config), engine.connect() as connection:
                if not _is_current(connection):  # nobody else did it while this process waited
                    command.upgrade(_alembic(connection), "head")
                    connection.commit()
        epoch: str = reader.execute(text("SELECT epoch FROM timeline")).scalar_one()
        return epoch


def move(config: StorageConfig, revision: str) -> None:
    """Takes the schema up or down to `revision`; `base` is nothing at all. For the stairway test and for operators."""
    engine = _engine(config)
    with _lock(engine, config), engine.connect() as connection:
        order = ["base", *revisions()]
        current = MigrationContext.configure(connection).get_current_revision() or "base"
        connection.rollback()
        target = order[-1] if revision == "head" else revision
        if order.index(target) >= order.index(current):
            command.upgrade(_alembic(connection), target)
        else:
            command.downgrade(_alembic(connection), target)
        connection.commit()


def _engine(config: StorageConfig) -> Engine:
    if config.url.dialect == "sqlite":
        Path(config.url.dsn).parent.mkdir(parents=True, exist_ok=True)
    return sync_engine(config)


def revisions() -> list[str]:
    """All revisions, oldest first."""
    scripts = ScriptDirectory(str(_SCRIPTS))
    return [script.revision for script in reversed(list(scripts.walk_revisions()))]


def _alembic(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.attributes["connection"] = connection
    return config


def _is_current(connection: Connection) -> bool:
    current = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()  # what was read must not become the snapshot of the migration
    return current == ScriptDirectory(str(_SCRIPTS)).get_current_head()


@contextmanager
def _lock(engine: Engine, config: StorageConfig) -> Iterator[None]:
    if config.url.dialect == "sqlite":
        with Path(config.url.dsn + ".migration-lock").open("w") as file:
            _poll(lambda: _flock(file))
            yield
        return
    # A transaction of its own holds the lock, so that it holds behind pgbouncer too. It is polled: a request that waits
    # for a lock has a snapshot, for which any CREATE INDEX CONCURRENTLY would wait in turn.
    with engine.connect() as holder:
        statement = text(f"SELECT pg_try_advisory_xact_lock({_LOCK_KEY})")

        def try_lock() -> bool:
            locked = bool(holder.execute(statement).scalar_one())
            if not locked:
                # Behind pgbouncer those that wait would keep the server's connections from whoever migrates.
                holder.rollback()
            return locked

        _poll(try_lock)
        yield


def _flock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _poll(try_lock: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LOCK_WAIT
    while not try_lock():
        if time.monotonic() > deadline:
            raise StorageUnavailable("another process has been migrating the database for a minute")
        time.sleep(0.1)
