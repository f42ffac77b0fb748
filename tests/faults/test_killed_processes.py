"""Workers and masters die under load: nothing acknowledged is lost, and every reader has every event once, in order."""

from __future__ import annotations

import signal

import pytest

from tests import proof
from tests.faults.deployment import Deployment, is_alive
from tests.faults.follower import until
from tests.faults.load import loaded
from tests.valkey_server import ValkeyServer

pytestmark = pytest.mark.fault


@pytest.mark.timeout(600)
async def test_a_killed_worker_costs_its_readers_a_moment_and_nothing_else(
    postgresql_url: str, valkey: ValkeyServer
) -> None:
    streams, kills = proof.count(100, 1_000), proof.count(2, 5)
    async with Deployment(postgresql_url, valkey.url) as deployment, loaded(deployment.port, streams, 50) as load:
        for _ in range(kills):
            await load.goes_on(50)
            deployment.worker_processes()[0].send_signal(signal.SIGKILL)
            await until(lambda: not load.all_back(), "the loss is noticed")
            await until(load.all_back, "all streams are back")
            await until(lambda: len(deployment.worker_processes()) == 2, "another worker")
        await load.goes_on(50)
    slowest = load.slowest_return
    proof.within(slowest, 10, "all streams are back")
    proof.record(
        f"kill -9 of a worker under {streams} streams and 50 messages/s",
        "postgresql",
        f"{kills} kills, {load.told}",
        f"all streams back within {slowest:.1f} s",
    )


@pytest.mark.timeout(600)
async def test_a_killed_master_and_the_next_one(postgresql_url: str, valkey: ValkeyServer) -> None:
    streams, kills = proof.count(100, 1_000), proof.count(1, 3)
    async with Deployment(postgresql_url, valkey.url) as deployment, loaded(deployment.port, streams, 50) as load:
        for _ in range(kills):
            await load.goes_on(50)
            orphans = deployment.worker_processes()
            await deployment.kill()
            await until(lambda: not any(map(is_alive, orphans)), "its workers end by themselves")  # noqa: B023
            await deployment.start()
            await until(load.all_back, "all streams are back")
        await load.goes_on(50)
    slowest = load.slowest_return
    proof.within(slowest, 10, "all streams are back")
    proof.record(
        f"kill -9 of the gunicorn master under {streams} streams and 50 messages/s, start again",
        "postgresql",
        f"{kills} kills, {load.told}",
        f"all streams back within {slowest:.1f} s",
    )
