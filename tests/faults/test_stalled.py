"""Readers that take nothing, beside others: memory is bounded, and nobody else is delayed (P6)."""

from __future__ import annotations

import asyncio
import statistics
import time

import aiohttp
import pytest

from tests import proof
from tests.faults.deployment import Deployment
from tests.faults.follower import Follower, caught_up, follow, stop_all
from tests.valkey_server import ValkeyServer

pytestmark = pytest.mark.fault

_GROWTH = 50.0  # MB, of all workers
_NOISE_MS = 20.0  # what a shared machine adds to a p99 now and then


@pytest.mark.timeout(600)
async def test_stalled_readers_cost_little_and_delay_nobody(postgresql_url: str, valkey: ValkeyServer) -> None:
    each, events = proof.count(20, 100), proof.count(60, 250)
    async with (
        Deployment(postgresql_url, valkey.url, SWARM_STREAM_SEND_TIMEOUT="600") as deployment,
        aiohttp.ClientSession(deployment.origin) as session,
    ):
        async with session.post("/api/conversations", json={}) as answer:
            conversation_id = str((await answer.json())["id"])
        sent: list[float] = []

        async def write() -> list[float]:
            """The delays of the events that are written now, to the good ones, in milliseconds."""
            start = len(sent)
            for _ in range(events):
                sent.append(time.perf_counter())
                body = {"role": "user", "content": "." * 4_000}
                async with session.post(f"/api/conversations/{conversation_id}/messages", json=body) as answer:
                    assert answer.status == 201
            await caught_up(good, len(sent))
            return [
                (follower.times or [])[n] * 1_000 - sent[n] * 1_000
                for follower in good
                for n in range(start, len(sent))
            ]

        def memory() -> float:
            return sum(worker.memory_info().rss for worker in deployment.worker_processes()) / 2**20

        good = await follow(deployment.port, conversation_id, each, timed=True)
        quiet = await write()
        stalled: list[Follower] = await follow(deployment.port, conversation_id, each, receive_buffer=4_096)
        await caught_up(stalled, len(sent))
        before = memory()
        for follower in stalled:
            follower.stall()
        beside = await write()
        beside += await write()
        grown = memory() - before
        assert max(follower.seq for follower in stalled) < len(sent), "they have taken nothing"
        full = await deployment.metric("swarm_events_delivered_total", source="live")
        assert full < (len(stalled) + len(good)) * len(sent), "the server has noticed"
        for follower in stalled:
            follower.go_on()
        await caught_up(stalled, len(sent))
        assert {follower.connections for follower in [*good, *stalled]} == {1}
        await stop_all([*good, *stalled])
        await asyncio.sleep(0)
    proof.record(
        f"{each} stalled readers beside {each} good ones",
        "postgresql",
        f"good ones' p99 {_p99(beside):.1f} ms beside them, {_p99(quiet):.1f} ms before",
        f"memory of both workers grew by {grown:.0f} MB; all exact when they read again",
    )
    assert grown < _GROWTH
    proof.within(_p99(beside), 2 * _p99(quiet) + _NOISE_MS, "the good ones' p99")


def _p99(delays: list[float]) -> float:
    return statistics.quantiles(delays, n=100)[98]
