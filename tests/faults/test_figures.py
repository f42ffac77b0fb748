"""`/metrics` while workers are killed: it stays well-formed, no counter falls, and no gauge of the dead stays."""

from __future__ import annotations

import asyncio
import signal

import aiohttp
import pytest

from tests import proof
from tests.faults.deployment import Deployment
from tests.faults.follower import until
from tests.metrics import promtool

pytestmark = pytest.mark.fault

_GROWING = ("_total", "_count", "_sum", "_bucket")


@pytest.mark.timeout(300)
async def test_no_counter_falls_and_no_ghost_stays_when_workers_are_killed(sqlite_url: str) -> None:
    kills = proof.count(2, 20)
    known: dict[str, float] = {}
    async with (
        Deployment(sqlite_url, workers=2, SWARM_POOL_SIZE="7") as deployment,
        aiohttp.ClientSession(deployment.origin) as session,
    ):

        async def scrape() -> None:
            async with session.get("/metrics") as answer:
                text = await answer.text()
            promtool.check(text)
            for line in text.splitlines():
                name, _, value = line.rpartition(" ")
                if not line.startswith("#") and name.partition("{")[0].endswith(_GROWING):
                    assert float(value) >= known.get(name, 0.0), name
                    known[name] = float(value)
            async with asyncio.timeout(20):  # the new worker has its part soon; the dead one's would stay for ever
                while await deployment.metric("db_client_connections_max") != 2 * 7:
                    await asyncio.sleep(0.05)

        for _ in range(kills):
            for _ in range(20):
                async with session.post("/api/conversations", json={}) as answer:
                    assert answer.status == 201
            await scrape()
            worker = deployment.worker_processes()[0]
            worker.send_signal(signal.SIGKILL)
            await until(
                lambda: len(found := deployment.worker_processes()) == 2 and worker not in found,  # noqa: B023
                "another worker",
            )
            await deployment.healthy()
            await scrape()
        posted = await deployment.metric("http_server_request_duration_seconds_count", http_response_status_code="201")
        assert posted == 20 * kills
    proof.record(
        "workers killed between scrapes", "sqlite", f"{kills} kills, {len(known)} series: none fell", "no ghosts"
    )
