"""`DATABASE_URL`: the forms it may have, and what its value never shows."""

import asyncio
import logging

import psycopg
import pytest

from metrics.operations import Unobserved
from storage.config import StorageConfig
from storage.database import Database
from storage.url import parse_database_url


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg", "POSTGRES"])
def test_postgresql_comes_under_many_names(scheme: str) -> None:
    url = parse_database_url(f"{scheme}://user:word@db.example:5433/swarm?sslmode=require")
    assert url.dialect == "postgresql"
    assert url.dsn == "postgresql://user:word@db.example:5433/swarm?sslmode=require"
    assert str(url) == "postgresql://db.example:5433/swarm"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://db.example/swarm", "postgresql://db.example/swarm"),
        ("postgres://user@db.example", "postgresql://db.example"),
        ("postgresql:///swarm", "postgresql:///swarm"),
        ("postgresql://user:p%40ss%2Fword@[::1]:5432/swarm", "postgresql://::1:5432/swarm"),
        ("  postgresql://db.example/swarm\n", "postgresql://db.example/swarm"),
    ],
)
def test_what_postgresql_needs_not_be_told_may_be_left_out(text: str, shown: str) -> None:
    assert str(parse_database_url(text)) == shown


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sqlite:///var/swarm.db", "var/swarm.db"),
        ("sqlite:////srv/swarm.db", "/srv/swarm.db"),
        ("sqlite+aiosqlite:////srv/swarm.db", "/srv/swarm.db"),
        ("SQLite:///./swarm.db", "swarm.db"),
    ],
)
def test_sqlite_is_a_files_path(text: str, path: str) -> None:
    url = parse_database_url(text)
    assert (url.dialect, url.dsn, str(url)) == ("sqlite", path, f"sqlite:///{path}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "swarm.db",
        "sqlite",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://host/swarm.db",
        "sqlite:///swarm.db?mode=ro",
        "mysql://user:hidden@db.example/swarm",
        "postgresql+pg8000://user:hidden@db.example/swarm",
        "postgresql:/user:hidden@db.example/swarm",
        "postgresql://user:hidden@db.example:port/swarm",
        "postgresql://user:hidden@db.example:99999/swarm",
        "postgresql://user:hidden@[::1/swarm",
        # A password with characters that should have been encoded: libpq would quote it, or take it for a name.
        "postgresql://user:hidden%@db.example/swarm",
        "postgresql://user:hidden%zz@db.example/swarm",
        "postgresql://user:hidden%00@db.example/swarm",
        "postgresql://user:1/hidden@db.example/swarm",
        "postgresql://user:pass@hidden@db.example/swarm",
        "postgresql://user:1?hidden@db.example/swarm",
        "postgresql://user:hi?dden@db.example/swarm",
        "postgresql://user:hid#den@db.example/swarm",
        "postgresql://user:hidden word@db.example/swarm",
    ],
)
def test_everything_else_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^DATABASE_URL ") as refused:
        parse_database_url(text)
    sentence = str(refused.value)
    assert "postgresql://user:password@host:port/name" in sentence
    assert "sqlite:///" in sentence
    assert "hidden" not in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


async def test_a_password_is_in_no_text_and_no_log(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody listens on port 1.
    url = parse_database_url("postgresql://user:hidden%21@127.0.0.1:1/swarm?password=hidden")
    database = Database(StorageConfig(url), Unobserved())
    with caplog.at_level(logging.DEBUG):
        await database.start()
        async with asyncio.timeout(10):
            while "reached yet" in database.reason:
                await asyncio.sleep(0.01)
        await database.close()
    printed = capsys.readouterr()
    logs = caplog.text + printed.out + printed.err
    assert "database not ready" in logs
    texts = [repr(url), str(url), repr(database.config), database.reason, await database.check(5), logs]
    texts.append(await database.check_synchronous(5))
    assert "hidden" not in "\n".join(texts)


@pytest.mark.parametrize(
    "text", ["postgresql://u:w%25%40@h:5/n", "postgresql://u@h/n?sslmode=disable&connect_timeout=3"]
)
def test_what_is_accepted_libpq_can_read(text: str) -> None:
    psycopg.conninfo.conninfo_to_dict(parse_database_url(text).dsn)
