"""A thousand readers come back at once, as after a network that was away for a moment."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests import proof
from tests.faults.deployment import Deployment
from tests.faults.follower import caught_up, follow, stop_all, until
from tests.valkey_server import ValkeyServer

pytestmark = pytest.mark.fault

# What the processes ask on their own account: comparisons, the idle sweeper, housekeeping, health.
_BACKGROUND = ("log.moved", "streaming.", "housekeeping.", "timeline.")


async def _queries(deployment: Deployment) -> int:
    """How many operations were carried out for requests, by all workers."""
    async with aiohttp.ClientSession(deployment.origin) as session, session.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    found = 0
    for line in lines:
        if line.startswith("db_client_operation_duration_seconds_count{"):
            name = line.partition('db_operation_name="')[2].partition('"')[0]
            if not name.startswith(_BACKGROUND):
                found += int(float(line.rsplit(" ", 1)[1]))
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("missed", [0, 3])
async def test_each_that_comes_back_costs_one_query_at_most(
    postgresql_url: str, valkey: ValkeyServer, missed: int
) -> None:
    count = proof.count(200, 1_000)
    async with (
        Deployment(postgresql_url, valkey.url) as deployment,
        aiohttp.ClientSession(deployment.origin) as session,
    ):
        async with session.post("/api/conversations", json={}) as answer:
            conversation_id = str((await answer.json())["id"])
        path = f"/api/conversations/{conversation_id}/messages"

        async def post(number: int) -> None:
            items = [{"role": "user", "content": "x" * 300}] * number
            async with session.post(path, json=items) as answer:
                assert answer.status == 201

        await post(5)
        followers = await follow(deployment.port, conversation_id, count)
        await caught_up(followers, 5)
        before = await _queries(deployment)
        for follower in followers:
            follower.cut()
        if missed:
            await post(missed)
        took = await until(lambda: all(f.ready and f.connections == 2 for f in followers), "all are back")
        await caught_up(followers, 5 + missed)
        queries = await _queries(deployment) - before - (missed > 0)
        assert queries <= count
        await post(1)
        await caught_up(followers, 6 + missed)
        assert not any(follower.refusals for follower in followers)
        proof.record(
            f"{count} readers reconnect at once, each lacks {missed} events",
            "postgresql",
            f"{queries} queries, no error",
            f"all back in {took:.1f} s, their own pause of up to 0.6 s included",
        )
        await stop_all(followers)
        await asyncio.sleep(0)
