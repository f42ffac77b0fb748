"""The server that other tests rely on is real, keeps what was committed, and leaves nothing behind."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import psycopg
import pytest

from tests.free_port import free_port
from tests.postgres_server import PostgresServer, PostgresServerError


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that these tests may kill."""
    with PostgresServer({"work_mem": "5MB"}) as server:
        yield server


def ask(server: PostgresServer, statement: str, database: str = "postgres") -> object:
    with psycopg.connect(server.url(database), autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
    return None if row is None else row[0]


def test_it_is_postgresql_18_with_durable_commits(postgres: PostgresServer) -> None:
    assert str(ask(postgres, "SHOW server_version")).startswith("18")
    assert ask(postgres, "SHOW fsync") == "on"
    assert ask(postgres, "SHOW synchronous_commit") == "on"
    assert ask(postgres, "SHOW max_connections") == "200"


def test_it_speaks_utf_8_whatever_the_machine_does(postgres: PostgresServer) -> None:
    assert ask(postgres, "SHOW server_encoding") == "UTF8"
    assert ask(postgres, "SELECT lower('ÉСЛ')") == "éсл"


def test_it_does_not_run_as_root(postgres: PostgresServer) -> None:
    assert psutil.Process(postgres.pid).uids().real != 0


async def test_an_asynchronous_driver_connects_by_the_same_url(postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(postgres.url("postgres"))
    try:
        assert await connection.fetchval("SELECT 6 * 7") == 42
    finally:
        await connection.close()


def test_databases_are_copied_from_a_template_and_dropped_under_their_readers(
    postgres: PostgresServer,
) -> None:
    postgres.create_database("first")
    ask(postgres, "CREATE TABLE kept AS SELECT 17 AS number", "first")
    postgres.create_database('second "odd" name', template="first")
    with contextlib.closing(psycopg.connect(postgres.url('second "odd" name'))) as reader:
        assert reader.execute("SELECT number FROM kept").fetchone() == (17,)
        postgres.drop_database('second "odd" name')
    postgres.drop_database("first")
    postgres.drop_database("first")
    assert ask(postgres, "SELECT count(*) FROM pg_database WHERE datname ~ 'first|second'") == 0


def test_settings_of_the_caller_win(own_server: PostgresServer) -> None:
    assert ask(own_server, "SHOW work_mem") == "5MB"


def test_what_was_committed_survives_a_kill_and_what_was_not_does_not(own_server: PostgresServer) -> None:
    own_server.create_database("killed")
    ask(own_server, "CREATE TABLE kept (number int)", "killed")
    port = own_server.port
    for number in range(3):
        ask(own_server, f"INSERT INTO kept VALUES ({number})", "killed")
        with psycopg.connect(own_server.url("killed")) as unfinished:
            unfinished.execute("INSERT INTO kept VALUES (100)")
            own_server.kill()
            with pytest.raises(psycopg.OperationalError):
                unfinished.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            ask(own_server, "SELECT 1")
        own_server.start()
        assert own_server.port == port
        assert ask(own_server, "SELECT array_agg(number ORDER BY number) FROM kept", "killed") == list(
            range(number + 1)
        )
    assert "was not properly shut down" in own_server.log()
    own_server.drop_database("killed")


def test_a_kill_leaves_no_process(own_server: PostgresServer) -> None:
    family = [psutil.Process(own_server.pid), *psutil.Process(own_server.pid).children(recursive=True)]
    assert len(family) > 3
    own_server.kill()
    try:
        assert not own_server.is_running
        assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        own_server.start()


def test_it_starts_again_after_an_orderly_stop(own_server: PostgresServer) -> None:
    own_server.create_database("stopped")
    with psycopg.connect(own_server.url("stopped")):
        own_server.stop()
    assert not own_server.is_running
    own_server.start()
    own_server.drop_database("stopped")


async def test_it_can_be_killed_and_started_from_a_coroutine(own_server: PostgresServer) -> None:
    await asyncio.to_thread(own_server.kill)
    await asyncio.to_thread(own_server.start)
    assert await asyncio.to_thread(ask, own_server, "SELECT 1") == 1


def test_a_server_that_cannot_start_shows_its_log_and_leaves_nothing() -> None:
    server = PostgresServer({"shared_buffers": "nonsense"})
    with pytest.raises(PostgresServerError, match="shared_buffers"), server:
        pass
    assert not server.is_running


def test_the_first_start_takes_another_port_when_its_own_was_taken(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([own_server.port, own_server.port, free_port()])
    monkeypatch.setattr("tests.postgres_server.free_port", lambda: next(ports))
    with PostgresServer() as other:
        assert other.port != own_server.port
        assert ask(other, "SELECT 1") == 1


def test_it_ends_with_the_process_that_started_it() -> None:
    program = """if True:
        import sys
        from tests.postgres_server import PostgresServer
        server = PostgresServer()
        server.start()
        print(server.pid, server.log_path, flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": "."},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        pid, log = owner.stdout.readline().split(maxsplit=1)
        server, folder = psutil.Process(int(pid)), Path(log.strip()).parent
        assert server.is_running()
        assert folder.is_dir()
        owner.kill()
    deadline = time.monotonic() + 20
    while folder.exists() or (server.is_running() and server.status() != psutil.STATUS_ZOMBIE):
        assert time.monotonic() < deadline, "the server outlived its owner"
        time.sleep(0.05)
