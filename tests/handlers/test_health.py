"""What operators, load balancers and platforms are told."""

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from handlers.health import VITALS, Health
from handlers.resources import DATABASE
from handlers.version import VERSION
from server import settings
from server.app import create_app
from storage.database import Database
from tests.api import Client, problem
from tests.free_port import free_port
from tests.served import Served

ROOT = Path(__file__).parents[2]


async def test_health_has_tried_both_ways_to_the_database(client: Client) -> None:
    response = await client.get("/health")
    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    health = msgspec.json.decode(await response.read(), type=Health)
    assert (health.status, health.mcp_servers) == ("healthy", "initialized")
    assert (health.database, health.async_database) == ("connected", "connected")
    assert health.epoch == client.app[DATABASE].epoch
    assert health.timestamp.tzinfo is not None
    assert health.response_time_ms > 0


async def test_many_probes_at_once_are_one_measurement(client: Client) -> None:
    answers = await asyncio.gather(*(client.get("/health") for _ in range(10)))
    stamps = {(await answer.json())["timestamp"] for answer in answers}
    assert len(stamps) < 10


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


async def test_a_drain_ends_readiness_not_life(client: Client) -> None:
    assert (await client.get("/health/ready")).status == 200
    client.app[VITALS].draining = True
    ready = await client.get("/health/ready")
    assert (ready.status, await ready.json()) == (503, {"status": "draining"})
    live = await client.get("/health/live")
    assert (live.status, await live.json()) == (200, {"status": "alive"})


@pytest.fixture
def nowhere() -> str:
    """The URL of a PostgreSQL server that is not there."""
    return f"postgresql://nobody:secret@127.0.0.1:{free_port()}/nothing"


async def test_without_its_database_the_server_serves_and_says_so(nowhere: str) -> None:
    app = create_app(settings.load({"DATABASE_URL": nowhere}))
    async with TestClient[Any, web.Application](Served(app)) as client:
        health = await client.get("/health")
        body = await health.json()
        assert (health.status, body["status"], body["epoch"]) == (503, "unhealthy", None)
        assert "connected" not in (body["database"], body["async_database"])
        assert "secret" not in await health.text()
        ready = await client.get("/health/ready")
        assert (ready.status, await ready.json()) == (503, {"status": "starting"})
        assert (await client.get("/health/live")).status == 200
        refused = await client.get("/api/conversations")
        document = await problem(refused, 503)
        assert document["type"] == "/problems/unavailable"
        assert int(refused.headers["Retry-After"]) > 0
        await problem(await client.post("/api/conversations", json={}), 503)
        await problem(await client.put("/api/agents/x", json={"name": "x", "role": "x"}), 503)
        assert (await client.get("/docs")).status == 200


async def test_a_database_that_does_not_answer_is_a_timeout(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(database: Database, timeout: float) -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timeout"
        return "connected"

    monkeypatch.setattr(Database, "check_synchronous", never)
    degraded = await client.get("/health")
    assert (degraded.status, (await degraded.json())["status"]) == (200, "degraded")
    monkeypatch.setattr(Database, "check", never)
    unhealthy = await client.get("/health")
    assert (unhealthy.status, (await unhealthy.json())["async_database"]) == (503, "timeout")
