"""Storage, ready for use, on each of the two databases."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from storage.database import Database
from tests.postgres_server import PostgresServer
from tests.storage.store import Store, opened, opened_database

_numbers = itertools.count()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database, ready."""
    async with opened_database(database_url) as database:
        yield database


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """All of storage on a migrated database."""
    async with opened(database_url) as store:
        yield store


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """Where an SQLite file may be made."""
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture
def empty_postgresql_url(postgres: PostgresServer) -> Iterator[str]:
    """A PostgreSQL database with nothing in it."""
    name = f"empty_{next(_numbers)}"
    postgres.create_database(name)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """A database with nothing in it, on each of the two."""
    url: str = request.getfixturevalue(f"empty_{request.param}_url")
    return url
