"""`/metrics` on an address of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from server.metrics_address import MetricsAddress, parse_metrics_address
from tests.conftest import serving
from tests.faults.deployment import Deployment
from tests.faults.follower import until
from tests.free_port import free_port
from tests.server_process import ROOT

TOKEN = "a-token-of-the-figures"


async def _status(session: aiohttp.ClientSession, url: str, **headers: str) -> int:
    async with session.get(url, headers=headers, timeout=aiohttp.ClientTimeout(20)) as answer:
        await answer.read()
        return answer.status


async def test_it_is_there_and_not_on_the_public_port_and_ends_with_the_application(sqlite_url: str) -> None:
    own = f"http://127.0.0.1:{(port := free_port())}"
    settings = {"DATABASE_URL": sqlite_url, "SWARM_METRICS_ADDRESS": f"127.0.0.1:{port}"}
    async with aiohttp.ClientSession() as session:
        async with serving(settings) as client:
            public = str(client.make_url("")).rstrip("/")
            assert await _status(session, f"{public}/metrics") == 404
            assert "/metrics" not in (await (await client.get("/openapi.json")).json())["paths"]
            async with session.get(f"{own}/metrics") as answer:
                assert answer.status == 200
                assert "swarm_streams_open" in await answer.text()
                assert answer.headers["Cache-Control"] == "no-store"
                assert answer.headers["X-Frame-Options"] == "DENY"
            for path in ("/api/agents", "/health", "/", "/docs"):
                assert await _status(session, f"{own}{path}") == 404
            assert await _status(session, f"{own}/metrics", Host="evil.example") == 421
        with pytest.raises(aiohttp.ClientConnectorError):
            await _status(session, f"{own}/metrics")


async def test_a_token_is_asked_for_there_as_well(sqlite_url: str) -> None:
    port = free_port()
    settings = {
        "DATABASE_URL": sqlite_url,
        "SWARM_METRICS_ADDRESS": f"localhost:{port}",
        "SWARM_METRICS_TOKEN": TOKEN,
    }
    async with serving(settings), aiohttp.ClientSession() as session:
        assert await _status(session, f"http://localhost:{port}/metrics") == 401
        assert await _status(session, f"http://localhost:{port}/metrics", Authorization=f"Bearer {TOKEN}") == 200


async def test_beyond_loopback_a_scraper_may_call_it_as_it_likes(sqlite_url: str) -> None:
    port = free_port()
    settings = {"DATABASE_URL": sqlite_url, "SWARM_METRICS_ADDRESS": f"0.0.0.0:{port}"}
    async with serving(settings), aiohttp.ClientSession() as session:
        assert await _status(session, f"http://127.0.0.1:{port}/metrics", Host="swarm.internal:9100") == 200


async def test_all_workers_of_gunicorn_listen_there_and_any_shows_the_figures_of_all(sqlite_url: str) -> None:
    port = free_port()
    async with (
        Deployment(sqlite_url, workers=2, SWARM_METRICS_ADDRESS=f"127.0.0.1:{port}") as deployment,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):
        assert await _status(session, f"{deployment.origin}/metrics") == 404
        workers = deployment.worker_processes()
        await until(lambda: all(_listens(worker, port) for worker in workers), "all listen")
        for _ in range(40):
            assert await _status(session, f"{deployment.origin}/health/live") == 200

        async def counted() -> float:
            async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            name = "http_server_request_duration_seconds_count"
            return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and "/live" in line)

        async with asyncio.timeout(20):
            while await counted() < 40:  # a request is counted when its answer is out
                await asyncio.sleep(0.01)
        assert [await counted() for _ in range(20)] == [40] * 20
        code, _ = await deployment.end()
    assert code == 0


def _listens(worker: psutil.Process, port: int) -> bool:
    return any(one.status == psutil.CONN_LISTEN and one.laddr[1:] == (port,) for one in worker.net_connections("tcp"))


def _refusal(folder: Path, *program: str, **environment: str) -> tuple[int, list[str]]:
    ended = subprocess.run(
        [sys.executable, "-m", *program],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": f"sqlite:///{folder}/swarm.db", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    said = (ended.stdout + ended.stderr).decode()
    assert "Traceback" not in said
    return ended.returncode, [line for line in said.splitlines() if not line.startswith("{")]


@pytest.mark.parametrize("program", [("server",), ("gunicorn", "--config", "server/gunicorn_conf.py")], ids=str)
async def test_an_address_that_is_taken_is_one_sentence(tmp_path: Path, program: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = await asyncio.to_thread(
            _refusal, tmp_path, *program, PORT=str(free_port()), SWARM_METRICS_ADDRESS=address
        )
    assert (code, said) == (1, [f"Cannot listen on {address} (SWARM_METRICS_ADDRESS): address already in use."])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9100", MetricsAddress("127.0.0.1", 9100)),
        ("[::1]:9100", MetricsAddress("::1", 9100)),
        ("metrics.internal:1", MetricsAddress("metrics.internal", 1)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: MetricsAddress) -> None:
    assert parse_metrics_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["9100", ":9100", "a:0", "a:65536", "::1:9100", "a b:1", "a:x", "[a]:1x", "http://a:1"]
)
def test_what_is_none_is_not_taken(text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        parse_metrics_address(text)
