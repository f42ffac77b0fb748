"""Migrations, through the synchronous engine and under a lock: any number of processes may start at once.

During a deploy the version before runs on the new schema, and workers of it may start there. So each migration declares
`oldest_code`, the oldest revision whose code still runs on the schema that it makes, and the database keeps what the
newest one has declared, for code that does not have that one. A migration that only adds repeats what the one before
it declared. One that removes something declares the first revision whose code does without.
"""

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
from sqlalchemy import Connection, Engine, delete, insert, inspect, select, text

from storage.config import StorageConfig
from storage.engines import sync_engine
from storage.errors import StorageUnavailable
from storage.tables import compatibility

_SCRIPTS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x5377_6172_6D  # "Swarm": names our advisory lock in the database
_LOCK_WAIT = 60.0  # seconds; migrations of a large table take longer than others should wait
# Seconds for each lock of a table. Whoever waits for one makes all wait who come later: behind a long transaction a
# migration would stall the servers that it runs beside. It is given up, and tried again with the next start.
_TABLE_WAIT = 3.0


def upgrade(config: StorageConfig) -> str:
    """Brings the schema up to date and returns the log's epoch. A schema that is current is only read, and
    so is a newer one on which this version may run.

    Raises `StorageUnavailable` on a newer one on which it may not, and when another process holds the lock for longer
    than a minute.
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
    """Takes the schema up or down to `revision`; `base` is nothing at all. For the stairway test and for operators.

    Raises `StorageUnavailable` when the schema is of a newer version: how to take it down, only that one knows.
    """
    engine = _engine(config)
    with _lock(engine, config), engine.connect() as connection:
        order = ["base", *revisions()]
        current = MigrationContext.configure(connection).get_current_revision() or "base"
        connection.rollback()
        if current not in order:
            raise StorageUnavailable(f"the schema is at revision {current}, which this version does not know")
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
    """Whether there is nothing to migrate: the schema is that of this version, or a newer one that lets it run."""
    known = revisions()
    current = MigrationContext.configure(connection).get_current_revision()
    oldest = None if current is None or current in known else _oldest_code(connection)
    connection.rollback()  # what was read must not become the snapshot of the migration
    if current is None or current in known:
        return current == known[-1]
    if oldest not in known:
        raise StorageUnavailable(f"the schema is at revision {current}, which needs a newer version than this one")
    return True


def _oldest_code(connection: Connection) -> str | None:
    """What the database has been told; None where it is another program's."""
    if not inspect(connection).has_table(compatibility.name):
        return None
    oldest: str | None = connection.execute(select(compatibility.c.oldest_code)).scalar_one_or_none()
    return oldest


def wait_briefly(connection: Connection) -> None:
    """Bounds how long the migrations of this transaction wait for the tables that servers use meanwhile."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = {int(_TABLE_WAIT * 1000)}"))


def declare_compatibility(connection: Connection) -> None:
    """Writes down what the schema's revision declares, in the transaction of the migrations themselves."""
    revision = MigrationContext.configure(connection).get_current_revision()
    script = None if revision is None else ScriptDirectory(str(_SCRIPTS)).get_revision(revision)
    oldest = None if script is None else getattr(script.module, "oldest_code", None)
    if oldest is not None:  # the first revisions knew nothing of it
        connection.execute(delete(compatibility))
        connection.execute(insert(compatibility).values(only=1, oldest_code=oldest))


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
