"""A stream holds no database connection (P7)."""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from handlers.resources import DATABASE
from tests import proof
from tests.sse_reader import SseReader

STREAMS = 1_000

Client = TestClient[Any, Any]


async def _read_windows(client: Client, path: str) -> float:
    """The median of 50 windows, in milliseconds."""
    times = []
    for _ in range(50):
        begun = time.perf_counter()
        answer = await client.get(path)
        assert answer.status == 200
        await answer.read()
        times.append((time.perf_counter() - begun) * 1_000)
    return statistics.median(times)


async def _none_checked_out(pool: Any) -> None:
    """What a stream holds it holds for good; the process's own looks at the database are over in a moment."""
    async with asyncio.timeout(10):
        while pool.checkedout():
            await asyncio.sleep(0.001)


@pytest.mark.proof
@pytest.mark.timeout(300)
async def test_a_thousand_idle_streams_hold_none_of_five_connections(client: Client, database_url: str) -> None:
    made = await client.post("/api/conversations", json={})
    base = f"/api/conversations/{(await made.json())['id']}"
    await client.post(f"{base}/messages", json=[{"role": "user", "content": "x" * 300}] * 60)
    pool = client.app[DATABASE].engine.pool
    assert pool.size() == 5
    before = await _read_windows(client, f"{base}/messages")
    assert client.port is not None
    async with AsyncExitStack() as stack:
        readers = []
        for _ in range(STREAMS // 50):
            batch = [SseReader(client.host, client.port, f"{base}/events?after=58") for _ in range(50)]
            await asyncio.gather(*(stack.enter_async_context(reader) for reader in batch))
            readers += batch
        for reader in readers:
            assert [frame.event for frame in await reader.until("ready")][:2] == ["message.created"] * 2
        await _none_checked_out(pool)
        during = await _read_windows(client, f"{base}/messages")
        # All of them live: one message reaches every one.
        await client.post(f"{base}/messages", json={"role": "user", "content": "to all"})
        for reader in readers:
            assert (await reader.event()).json["message"]["content"] == "to all"
        await _none_checked_out(pool)
    database = database_url.partition(":")[0]
    proof.record(
        "idle streams, pool of 5", database, f"{STREAMS} streams, 0 checked out",
        f"window: median {before:.2f} ms before, {during:.2f} ms beside them",
    )  # fmt: skip
