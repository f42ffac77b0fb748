"""Two versions of the code on one database, as during a deploy."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from storage import migrate
from storage.config import StorageConfig
from storage.engines import sync_engine
from storage.tables import compatibility
from storage.url import parse_database_url
from tests.faults.follower import Follower, caught_up, stop_all, until
from tests.server_process import ROOT, ServerProcess

# What modules did otherwise before the newest revision, where it changes more than the schema: by revision and module,
# the text that stands at the module's end.
_BEFORE: dict[str, dict[str, str]] = {}
_PACKAGES = ("server", "handlers", "agents", "events", "storage", "metrics")


@pytest.fixture
def previous_code(tmp_path: Path) -> Path:
    """The code as it is, but with no knowledge of the newest migration, and without what it does since then."""
    place = tmp_path / "previous"
    for package in _PACKAGES:
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    [newest] = (place / "storage" / "migrations" / "versions").glob(f"{migrate.revisions()[-1]}_*.py")
    newest.unlink()
    for module, text in _BEFORE.get(migrate.revisions()[-1], {}).items():
        with (place / module).open("a") as file:
            file.write(text)
    return place


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with nothing in it, on each of the two."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    postgres = request.getfixturevalue("postgres")
    postgres.create_database("two_versions")
    yield postgres.url("two_versions")
    postgres.drop_database("two_versions")


@asynccontextmanager
async def _running(server: ServerProcess) -> AsyncIterator[ServerProcess]:
    """In the end it ends in order."""
    await server.start()
    try:
        yield server
    finally:
        assert await server.end(signal.SIGTERM) == 0


async def _command(code: Path, url: str, *arguments: str) -> tuple[int, str]:
    """`python -m storage` of that code: its exit code and all it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "storage", *arguments,
        cwd=code,
        env={**os.environ, "DATABASE_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(30):
        said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def _post(session: aiohttp.ClientSession, origin: str, conversation_id: str, text: str) -> dict[str, Any]:
    body = {"role": "user", "content": text}
    async with session.post(f"{origin}/api/conversations/{conversation_id}/messages", json=body) as answer:
        assert answer.status == 201, await answer.text()
        made: dict[str, Any] = await answer.json()
        return made


async def test_the_version_before_serves_while_the_schema_is_brought_up_and_starts_again_on_it(
    previous_code: Path, empty_database_url: str
) -> None:
    before = ServerProcess(empty_database_url, code=previous_code, SWARM_STREAM_RETRY="0.1")
    after = ServerProcess(empty_database_url)
    acknowledged: list[dict[str, Any]] = []
    migrated = asyncio.Event()
    async with _running(before), aiohttp.ClientSession() as session:
        async with session.post(f"{before.origin}/api/conversations", json={}) as answer:
            conversation_id = (await answer.json())["id"]
        readers = [Follower(before.port, conversation_id)]
        readers[0].start()

        async def write() -> None:
            """Until the schema is new, and a little beyond."""
            beyond = 20
            while beyond:
                acknowledged.append(await _post(session, before.origin, conversation_id, "before"))
                beyond -= migrated.is_set()

        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(write())
            await until(lambda: len(acknowledged) >= 20 or writing.done(), "the version before is written to")
            code, said = await _command(ROOT, empty_database_url, "upgrade")
            assert code == 0, said
            migrated.set()
        async with _running(after):
            readers.append(Follower(after.port, conversation_id))
            readers[1].start()
            # A worker of the version before dies amidst the deploy, and is replaced.
            await before.end(signal.SIGKILL)
            await before.start()
            for n in range(20):
                server = before if n % 2 else after
                acknowledged.append(await _post(session, server.origin, conversation_id, "beside"))
            await caught_up(readers, len(acknowledged))
            assert await _messages(session, before.origin, conversation_id) == acknowledged
            await stop_all(readers)


async def _messages(session: aiohttp.ClientSession, origin: str, conversation_id: str) -> list[dict[str, Any]]:
    """All of them, window by window."""
    listed: list[dict[str, Any]] = []
    position: int | None = 0
    while position is not None:
        path = f"/api/conversations/{conversation_id}/messages?after={position}&limit=500"
        async with session.get(f"{origin}{path}") as answer:
            window = await answer.json()
        listed += window["items"]
        position = window["next"]
    return listed


async def test_the_version_before_says_why_it_cannot_serve_where_what_it_needs_is_gone(
    previous_code: Path, sqlite_url: str
) -> None:
    newest = migrate.revisions()[-1]
    with sync_engine(StorageConfig(parse_database_url(sqlite_url))).begin() as connection:
        # As a migration declares that removes what the version before it uses.
        connection.execute(compatibility.update().values(oldest_code=newest))
    code, said = await _command(previous_code, sqlite_url, "upgrade")
    assert code == 1
    assert said.count("\n") == 1
    assert f"the schema is at revision {newest}, which needs a newer version" in said
    async with (
        _running(ServerProcess(sqlite_url, code=previous_code)) as server,
        aiohttp.ClientSession(server.origin) as session,
    ):
        async with session.get("/health/ready") as answer:
            assert (answer.status, await answer.json()) == (503, {"status": "starting"})
        async with session.post("/api/conversations", json={}) as answer:
            assert answer.status == 503
