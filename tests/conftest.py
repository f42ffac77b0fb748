"""What all tests share: databases, the whole application on each, and the table of proofs."""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from blockbuster import blockbuster_ctx

from handlers.resources import DATABASE
from server import settings
from server.app import create_app
from storage import migrate
from storage.config import StorageConfig
from storage.url import parse_database_url
from tests import proof
from tests.postgres_server import PostgresServer
from tests.prepared_databases import PreparedDatabases
from tests.served import Served
from tests.valkey_server import ValkeyServer

_TEMPLATE = "migrated"

# What a new database connection does in the loop: asyncpg looks for a password file, SQLAlchemy completes a path.
_ALLOWED = ("os.stat", "os.path.abspath")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's PostgreSQL server, started for the first test that asks for it.

    Tests share it, so each makes a database of its own; one that kills or stops a server starts another.
    """
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the schema and nothing else, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    migrate.upgrade(StorageConfig(parse_database_url(f"sqlite:///{path}")))
    return path


@pytest.fixture(scope="session")
def prepared_databases(postgres: PostgresServer) -> Iterator[PreparedDatabases]:
    """Databases of the session's server that have the schema and nothing else."""
    postgres.create_database(_TEMPLATE)
    migrate.upgrade(StorageConfig(parse_database_url(postgres.url(_TEMPLATE))))
    with PreparedDatabases(postgres, _TEMPLATE) as databases:
        yield databases


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A migrated SQLite file of the test's own."""
    path = tmp_path / "swarm.db"
    shutil.copy(migrated_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgres: PostgresServer, prepared_databases: PreparedDatabases) -> Iterator[str]:
    """A migrated PostgreSQL database of the test's own."""
    name = prepared_databases.take()
    yield postgres.url(name)
    prepared_databases.give_back(name)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """The session's Valkey server. Tests share it: what they say is of their databases' epochs."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    """A Valkey server that the test may kill."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[ValkeyServer]:
    """A cluster of one."""
    with ValkeyServer(cluster=True) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of the test's own, on each of the two."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def environment() -> dict[str, str]:
    """Settings of the application under test, besides its database; a test may change them before it asks for more."""
    return {}


@pytest.fixture
async def client(database_url: str, environment: dict[str, str]) -> AsyncIterator[TestClient[Any, web.Application]]:
    """A client of the whole application, on connections as `python -m server` makes them."""
    async with serving({"DATABASE_URL": database_url, **environment}) as client:
        # Once it serves, whatever would block its loop (a file, a connect, a sleep in its thread) raises instead.
        with blockbuster_ctx(["server", "handlers", "events", "storage", "agents"]) as watch:
            for name in _ALLOWED:
                watch.functions[name].deactivate()
            yield client


@asynccontextmanager
async def serving(environment: dict[str, str]) -> AsyncIterator[TestClient[Any, web.Application]]:
    """A client of the whole application with these settings, whose database is ready."""
    app = create_app(settings.load(environment))
    async with TestClient(Served(app)) as client:
        await app[DATABASE].wait_until_ready()
        yield client


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that runs a part of the tests sends its figures to the one that prints the table."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["figures"] = proof.figures()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes them in."""
    proof.gather(getattr(node, "workeroutput", {}).get("figures", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the proofs found, after the tests."""
    table = proof.table()
    if table:
        counts = "full" if proof.is_full() else "reduced"
        terminalreporter.section(f"proofs, at {counts} counts")
        terminalreporter.write_line(table)
