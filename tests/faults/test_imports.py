"""Imports under a key, cut off in the middle and sent again: each line is stored once, in its place."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests import proof
from tests.server_process import ServerProcess

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

LINES = 20_000  # forty batches
_BODY = b"".join(b'{"role":"user","content":"%d"}\n' % n for n in range(1, LINES + 1))
_AWAY = (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError)
_TERMINATE = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


class Importer:
    """One import after the other into conversations of their own, each sent again until it is answered."""

    def __init__(self, server: ServerProcess) -> None:
        self.imports = 0
        """How many have been stored whole."""
        self._server = server

    async def run(self, enough: Callable[[], bool]) -> None:
        """Goes on until there has been enough of what cuts it off."""
        async with aiohttp.ClientSession(self._server.origin) as session:
            while not enough():
                made = await _asked(session, "POST", "/api/conversations", json={})
                await _import(session, made["id"])
                self.imports += 1


async def _import(session: aiohttp.ClientSession, conversation: str) -> None:
    path = f"/api/conversations/{conversation}/messages"
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": conversation}
    stored = await _asked(session, "POST", path, data=_BODY, headers=headers)
    assert stored == {"accepted": LINES, "first_position": 1, "last_position": LINES, "as_of": LINES}
    contents: list[str] = []
    while len(contents) < LINES:
        window = await _asked(session, "GET", path, params={"after": len(contents), "limit": 500})
        assert window["total"] == LINES
        contents += [item["content"] for item in window["items"]]
    assert contents == [str(n) for n in range(1, LINES + 1)]


async def _asked(session: aiohttp.ClientSession, method: str, path: str, **options: Any) -> Any:
    """The answer to the request, which is sent until there is one: the server, or its database, is away at times."""
    while True:
        try:
            async with session.request(method, path, **options) as answer:
                found = await answer.json()
                if answer.ok:
                    return found
                assert answer.status == 503, found
        except _AWAY:
            pass
        await asyncio.sleep(0.02)


@asynccontextmanager
async def _running(database_url: str) -> AsyncIterator[ServerProcess]:
    server = ServerProcess(database_url)
    await server.start()
    try:
        yield server
    finally:
        await server.end(signal.SIGKILL)


async def _cut_off(server: ServerProcess, cuts: int, cut: Callable[[], Awaitable[None]], most: float) -> int:
    """Does that so often while imports go on, each time after `most` seconds at most. Returns how many ended well."""
    done = 0
    importer = Importer(server)
    importing = asyncio.create_task(importer.run(lambda: done >= cuts))
    moments = random.Random(proof.seed())
    try:
        while done < cuts and not importing.done():
            await asyncio.sleep(moments.uniform(0, most))
            await cut()
            done += 1
        async with asyncio.timeout(60):
            await importing
    finally:
        importing.cancel()
    return importer.imports


async def test_the_server_is_killed(database_url: str) -> None:
    kills = proof.count(4, 60)
    async with _running(database_url) as server:

        async def kill() -> None:
            await server.end(signal.SIGKILL)
            await server.start()

        imports = await _cut_off(server, kills, kill, 0.8)
    proof.record(
        "kill -9 of a process that imports",
        database_url.partition(":")[0],
        f"{kills} kills",
        f"{imports} imports of {LINES} lines, each line once and in its place",
    )


async def test_the_database_ends_the_connections(postgresql_url: str) -> None:
    """One batch's answer is lost while the next one waits for it, or the other way round."""
    strokes, ended = proof.count(30, 1_000), 0
    administrator = await asyncpg.connect(postgresql_url)
    try:
        async with _running(postgresql_url) as server:

            async def terminate() -> None:
                nonlocal ended
                ended += await administrator.fetchval(_TERMINATE)

            imports = await _cut_off(server, strokes, terminate, 0.1)
    finally:
        await administrator.close()
    proof.record(
        "backends terminated under an import",
        "postgresql",
        f"{ended} in {strokes} strokes",
        f"{imports} imports of {LINES} lines, each line once and in its place",
    )
