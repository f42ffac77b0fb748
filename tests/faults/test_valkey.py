"""Valkey fails in every way while deltas stream: it costs time, and no event."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tests import proof
from tests.faults.deployment import Deployment
from tests.faults.follower import Follower, caught_up, follow, stop_all, until
from tests.faults.writer import stored
from tests.valkey_server import ValkeyServer

pytestmark = pytest.mark.fault

_RATE = 200  # deltas a second
_WRITERS = 4  # each a message of its own, in a conversation that all share
_SLOWEST = 2.0  # seconds from the answer to the last reader (P8)


class _Deltas:
    """Streams one message after another, and notes when each delta was sent and how long it took."""

    def __init__(self, session: aiohttp.ClientSession, conversation_id: str) -> None:
        self.delays: list[float] = []
        self.stop = asyncio.Event()
        self._session = session
        self._path = f"/api/conversations/{conversation_id}/messages"

    async def run(self) -> None:
        while not self.stop.is_set():
            made = await self._post(self._path, {"role": "user", "status": "streaming"}, 201)
            for offset in range(100):
                begun = time.perf_counter()
                await self._post(f"/api/messages/{made['id']}/deltas", {"offset": offset, "text": "x"}, 200)
                self.delays.append(time.perf_counter() - begun)
                if self.stop.is_set():
                    break
                await asyncio.sleep(max(0.0, _WRITERS / _RATE - (time.perf_counter() - begun)))
            await self._post(f"/api/messages/{made['id']}/finish", {"status": "complete"}, 200)

    async def _post(self, path: str, body: dict[str, Any], status: int) -> dict[str, Any]:
        async with self._session.post(path, json=body) as answer:
            assert answer.status == status, await answer.text()
            found: dict[str, Any] = await answer.json()
            return found


def _p99(delays: list[float]) -> float:
    return statistics.quantiles(delays, n=100)[98] * 1_000


def _shares(deployment: Deployment) -> list[int]:
    """How many connections each worker has."""
    return [len(worker.net_connections("tcp")) for worker in deployment.worker_processes()]


async def _behind(followers: list[Follower], stop: asyncio.Event) -> float:
    """The longest that any reader was behind another one, in seconds. Those of the writing worker hear at once."""
    longest, since, target = 0.0, time.perf_counter(), 0
    while not stop.is_set():
        now = time.perf_counter()
        if min(follower.seq for follower in followers) >= target:
            since, target = now, max(follower.seq for follower in followers)
        longest = max(longest, now - since)
        await asyncio.sleep(0.005)
    return longest


@pytest.mark.timeout(600)
async def test_whatever_happens_to_valkey_costs_time_and_no_event(
    postgresql_url: str, own_valkey: ValkeyServer
) -> None:
    def cut_connections() -> None:
        with own_valkey.client() as client:
            for kind in ("pubsub", "normal"):
                client.client_kill_filter(_type=kind, skipme=True)

    def flush() -> None:
        with own_valkey.client() as client:
            client.flushall()

    faults: list[tuple[str, list[Callable[[], None]]]] = [
        ("CLIENT KILL", [cut_connections, cut_connections]),
        ("FLUSHALL", [flush]),
        ("kill -9", [own_valkey.kill, own_valkey.start]),
        ("SIGSTOP", [own_valkey.suspend, own_valkey.resume]),
    ]
    seconds = proof.count(2, 8)  # of each fault, and as long of quiet after it
    async with (
        Deployment(postgresql_url, own_valkey.url) as deployment,
        aiohttp.ClientSession(deployment.origin) as session,
    ):
        async with session.post("/api/conversations", json={}) as answer:
            conversation_id = str((await answer.json())["id"])
        followers: list[Follower] = []
        async with asyncio.timeout(60):
            while len(followers) < 20 or min(_shares(deployment)) < 6:  # both workers have some of them
                followers += await follow(deployment.port, conversation_id, 1)
        writers = [_Deltas(session, conversation_id) for _ in range(_WRITERS)]
        running = [asyncio.create_task(writer.run()) for writer in writers]
        await until(lambda: sum(len(writer.delays) for writer in writers) > _RATE, "a second of deltas")
        quiet = [delay for writer in writers for delay in writer.delays]
        for name, happenings in faults:
            before = [len(writer.delays) for writer in writers]
            stop = asyncio.Event()
            watching = asyncio.create_task(_behind(followers, stop))
            for happen in happenings:
                await asyncio.to_thread(happen)
                await asyncio.sleep(seconds)  # the fault lasts, under load
            stop.set()
            behind = await watching
            delays = [delay for writer, start in zip(writers, before, strict=True) for delay in writer.delays[start:]]
            proof.record(
                f"Valkey: {name}, at {_RATE} deltas/s",
                "postgresql",
                f"readers at most {behind:.2f} s behind",
                f"appends: p99 {_p99(delays):.0f} ms, {_p99(quiet):.0f} ms before",
            )
            proof.within(behind, _SLOWEST, "readers behind")
        for writer in writers:
            writer.stop.set()
        await asyncio.gather(*running)
        _, head = await stored(session, conversation_id)
        await caught_up(followers, head)
        assert [follower.connections for follower in followers] == [1] * len(followers), "no stream was closed"
        proof.record(
            "the same, all faults",
            "postgresql",
            f"{head} events, each read once by {len(followers)} readers",
            "none lost",
        )
        await stop_all(followers)
