"""Deploys under load: streams are told to come back, requests end, and nobody misses anything (P10)."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests import proof
from tests.faults import nginx
from tests.faults.deployment import Deployment
from tests.faults.follower import until
from tests.faults.load import Load, loaded
from tests.valkey_server import ValkeyServer

pytestmark = pytest.mark.fault

_GRACE = 25.0  # seconds; SWARM_DRAIN and a little more
_STREAMS_END = 2.0


async def _restart(deployment: Deployment, load: Load) -> tuple[float, float]:
    """How long its streams took to end, and it itself, in seconds."""
    before = sum(follower.ended_by_drain for follower in load.followers)
    open_streams = int(await deployment.metric("swarm_streams_open"))
    begun = time.perf_counter()
    ending = asyncio.create_task(deployment.end())
    await until(lambda: sum(f.ended_by_drain for f in load.followers) >= before + open_streams, "its streams end")
    streams = time.perf_counter() - begun
    code, seconds = await ending
    assert code == 0
    assert "not closed in time" not in deployment.said()
    assert deployment.said().count("Worker exiting") % deployment.workers == 0, "each cleaned up"
    await deployment.start()
    return streams, seconds


def _check(load: Load, streams: float, seconds: float) -> None:
    proof.within(streams, _STREAMS_END, "its streams end")
    proof.within(seconds, _GRACE, "the process ends")
    assert max(writer.most_tries for writer in load.writers) >= 1


@pytest.mark.timeout(600)
async def test_a_server_that_is_told_to_end_under_load_ends_its_streams_at_once_and_itself_in_time(
    postgresql_url: str, valkey: ValkeyServer
) -> None:
    count, times = proof.count(100, 1_000), proof.count(1, 3)
    streams = seconds = 0.0
    async with (
        Deployment(postgresql_url, valkey.url, SWARM_LOG_LEVEL="INFO") as deployment,
        loaded(deployment.port, count, 50) as load,
    ):
        for _ in range(times):
            await load.goes_on(30)
            streams, seconds = map(max, zip((streams, seconds), await _restart(deployment, load), strict=True))
            await until(load.all_back, "all streams are back")
        await load.goes_on(30)
    _check(load, streams, seconds)
    proof.record(
        f"SIGTERM under {count} streams and 50 messages/s",
        "postgresql",
        f"{times} times: streams ended in {streams:.2f} s, the process in {seconds:.1f} s",
        load.told,
    )


@pytest.mark.timeout(600)
async def test_a_rolling_restart_behind_one_address_fails_no_request_beyond_a_retry(
    postgresql_url: str, valkey: ValkeyServer
) -> None:
    nginx.require()
    count, times = proof.count(60, 600), proof.count(1, 3)
    streams = seconds = 0.0
    async with (
        Deployment(postgresql_url, valkey.url, SWARM_LOG_LEVEL="INFO") as one,
        Deployment(postgresql_url, valkey.url, SWARM_LOG_LEVEL="INFO") as other,
    ):
        with nginx.Nginx([one.port, other.port]) as front:
            async with loaded(front.port, count, 50) as load:
                for _ in range(times):
                    for deployment in (one, other):
                        await load.goes_on(30)
                        took = await _restart(deployment, load)
                        streams, seconds = max(streams, took[0]), max(seconds, took[1])
                        await until(load.all_back, "all streams are back")
                await load.goes_on(30)
    _check(load, streams, seconds)
    tries = max(writer.most_tries for writer in load.writers)
    assert tries <= 2, "a retry"
    proof.record(
        f"rolling restart of two servers behind nginx, {count} streams and 50 messages/s",
        "postgresql",
        f"{times} times each: streams ended in {streams:.2f} s, {sum(w.tried_again for w in load.writers)} retries",
        load.told,
    )
