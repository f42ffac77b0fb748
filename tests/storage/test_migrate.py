"""Migrations: up, down and up again, to exactly the tables that the code knows, by one process at a time."""

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import OperationalError

from storage import migrate
from storage.config import StorageConfig
from storage.engines import sync_engine
from storage.errors import StorageUnavailable
from storage.tables import compatibility, metadata
from storage.url import parse_database_url
from tests.storage.store import TIMEOUT, opened
from tests.storage.streaming import stream


def _config(url: str) -> StorageConfig:
    return StorageConfig(parse_database_url(url))


def _tables(config: StorageConfig) -> set[str]:
    with sync_engine(config).connect() as connection:
        return set(inspect(connection).get_table_names()) - {"alembic_version"}


def _functions(config: StorageConfig) -> list[str]:
    if config.url.dialect == "sqlite":
        return []
    with sync_engine(config).connect() as connection:
        functions = connection.execute(
            text("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY proname")
        )
        return list(functions.scalars())


def test_every_step_of_the_stairway_goes_up_down_and_up_again(empty_database_url: str) -> None:
    config = _config(empty_database_url)
    below = "base"
    for revision in migrate.revisions():
        before = (_tables(config), _functions(config))
        migrate.move(config, revision)
        after = (_tables(config), _functions(config))
        migrate.move(config, below)
        assert (_tables(config), _functions(config)) == before
        migrate.move(config, revision)
        assert (_tables(config), _functions(config)) == after
        below = revision
    migrate.move(config, "base")
    assert (_tables(config), _functions(config)) == (set(), [])
    migrate.move(config, "head")
    assert _tables(config) == set(metadata.tables)


def test_migrations_make_the_tables_that_the_code_knows(database_url: str) -> None:
    with sync_engine(_config(database_url)).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_indexes_and_storage_are_those_that_the_code_knows(database_url: str, request: pytest.FixtureRequest) -> None:
    """What alembic does not compare: conditions of indexes, fill factors, types as the database spells them."""
    kind = parse_database_url(database_url).dialect
    made = _config(request.getfixturevalue(f"empty_{kind}_url"))
    with sync_engine(made).begin() as connection:
        metadata.create_all(connection)
    assert _definitions(_config(database_url)) == _definitions(made)


def _definitions(config: StorageConfig) -> list[Any]:
    if config.url.dialect == "sqlite":
        statements = ["SELECT tbl_name, name, sql FROM sqlite_master WHERE tbl_name <> 'alembic_version'"]
    else:
        indexes = "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        options = (
            "SELECT relname, reloptions::text FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'"
        )
        columns = (
            "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
        )
        statements = [f"{indexes} AND tablename <> 'alembic_version'", options, columns]
    with sync_engine(config).connect() as connection:
        rows = [tuple(row) for statement in statements for row in connection.execute(text(statement))]
    # SQLite keeps the words of CREATE TABLE; only their layout may differ.
    return sorted(tuple(" ".join(str(value).split()) for value in row) for row in rows)


def test_of_many_that_start_at_once_one_migrates(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(empty_database_url)
    migrations: list[str] = []
    upgrade, is_current = command.upgrade, migrate._is_current
    asked = threading.local()
    all_have_looked = threading.Barrier(4, timeout=TIMEOUT)

    def look_together(connection: Any) -> bool:
        answer = is_current(connection)
        if not getattr(asked, "before", False):
            asked.before = True
            all_have_looked.wait()  # everyone has seen an empty database before anyone migrates it
        return answer

    def count(config: Any, revision: str) -> None:
        migrations.append(revision)
        upgrade(config, revision)

    monkeypatch.setattr(migrate, "_is_current", look_together)
    monkeypatch.setattr(command, "upgrade", count)
    with ThreadPoolExecutor(4) as threads:
        epochs = list(threads.map(migrate.upgrade, [config] * 4))
    assert len(migrations) == 1
    assert len(set(epochs)) == 1
    assert _tables(config) == set(metadata.tables)


def test_a_new_database_that_another_is_just_making_is_waited_for(
    empty_sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's busy timeout does not hold for the change to a write-ahead log."""
    config = _config(empty_sqlite_url)
    other = sqlite3.connect(config.url.dsn, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # of a database that has no write-ahead log yet
    monkeypatch.setattr("storage.engines.time.sleep", lambda seconds: other.close())  # it ends while one waits for it
    with sync_engine(config).connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"


def test_a_new_database_that_stays_locked_is_an_error(empty_sqlite_url: str) -> None:
    config = _config(empty_sqlite_url)
    other = sqlite3.connect(config.url.dsn, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OperationalError, match="locked"):
        sync_engine(StorageConfig(config.url, command_timeout=0.1)).connect()
    other.close()


async def test_a_current_schema_is_only_read_in_postgresql(postgresql_url: str) -> None:
    config = _config(postgresql_url)
    with sync_engine(config).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = parse_database_url(postgresql_url).dsn.rpartition("/")[2]
        connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
    assert len(await asyncio.to_thread(migrate.upgrade, config)) == 6


def test_a_current_schema_is_only_read_in_sqlite(sqlite_url: str) -> None:
    config = _config(sqlite_url)
    writer = sqlite3.connect(config.url.dsn, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")  # nobody else can write, and upgrading need not wait for that
    try:
        impatient = StorageConfig(config.url, command_timeout=0.1)
        assert len(migrate.upgrade(impatient)) == 6
    finally:
        writer.close()


def test_an_epoch_is_drawn_anew_for_each_database(empty_sqlite_url: str, sqlite_url: str) -> None:
    assert migrate.upgrade(_config(empty_sqlite_url)) != migrate.upgrade(_config(sqlite_url))


async def test_a_message_that_streams_goes_on_when_the_schema_was_taken_down_and_up_again(database_url: str) -> None:
    """As an operator does who goes back to the version before and then forward again."""
    async with opened(database_url) as store:
        begun = await stream(store, await store.conversation())
        await begun.add("e\u0301 \U0001f41d")
        await begun.add("s")
        rows = await store.execute("SELECT * FROM streaming_messages")
    await asyncio.to_thread(migrate.move, _config(database_url), "0001")
    await asyncio.to_thread(migrate.move, _config(database_url), "head")
    async with opened(database_url) as store:
        assert await store.execute("SELECT * FROM streaming_messages") == rows


def test_every_migration_declares_which_code_still_runs_on_its_schema_and_never_an_older_one_again() -> None:
    order = migrate.revisions()
    scripts = ScriptDirectory(str(migrate._SCRIPTS))
    declared = [order.index(scripts.get_revision(revision).module.oldest_code) for revision in order[2:]]
    assert declared == sorted(declared)
    assert all(oldest <= own for own, oldest in enumerate(declared, 2))


def _make_newer(config: StorageConfig, oldest_code: str) -> None:
    """As a version does that is still to be written."""
    with sync_engine(config).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(compatibility.update().values(oldest_code=oldest_code))


def test_a_newer_schema_that_lets_this_version_run_is_taken_as_it_is(database_url: str) -> None:
    config = _config(database_url)
    epoch = migrate.upgrade(config)
    with sync_engine(config).connect() as connection:
        declared = connection.execute(text("SELECT oldest_code FROM compatibility")).scalar_one()
    assert declared in migrate.revisions()
    _make_newer(config, declared)
    assert migrate.upgrade(config) == epoch
    _make_newer(config, migrate.revisions()[-1])
    assert migrate.upgrade(config) == epoch


def test_a_newer_schema_that_needs_a_newer_version_is_refused(database_url: str) -> None:
    config = _config(database_url)
    _make_newer(config, "9998")
    with pytest.raises(StorageUnavailable, match="revision 9999, which needs a newer version"):
        migrate.upgrade(config)
    with pytest.raises(StorageUnavailable, match="does not know"):
        migrate.move(config, "base")


def test_the_schema_of_another_program_is_refused(empty_database_url: str) -> None:
    config = _config(empty_database_url)
    with sync_engine(config).begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('ab12cd34')"))
    with pytest.raises(StorageUnavailable, match="revision ab12cd34"):
        migrate.upgrade(config)
    assert _tables(config) == set()


def test_what_is_declared_goes_with_the_migration_that_declared_it(database_url: str) -> None:
    config = _config(database_url)
    with sync_engine(config).begin() as connection:
        connection.execute(compatibility.update().values(oldest_code="none"))
    migrate.move(config, "0002")
    migrate.move(config, "head")
    with sync_engine(config).connect() as connection:
        rows = connection.execute(text("SELECT compatibility.only, oldest_code FROM compatibility")).all()
    newest = ScriptDirectory(str(migrate._SCRIPTS)).get_revision(migrate.revisions()[-1])
    assert [tuple(row) for row in rows] == [(1, newest.module.oldest_code)]


def test_a_migration_does_not_stall_servers_behind_a_long_transaction(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(postgresql_url)
    migrate.move(config, "0001")
    monkeypatch.setattr(migrate, "_TABLE_WAIT", 0.1)
    with sync_engine(config).connect() as writer:
        writer.execute(text("LOCK TABLE events IN ROW EXCLUSIVE MODE"))
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate.upgrade(config)
        writer.rollback()
    assert len(migrate.upgrade(config)) == 6
