"""`python -m server`, as people start it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.free_port import free_port

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def process(folder: Path, *arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server started in a folder, killed at the end if it still runs."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "server",
        *arguments,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def address(started: asyncio.subprocess.Process) -> str:
    """The address that it prints once it listens."""
    assert started.stdout is not None
    async with asyncio.timeout(30):
        line = (await started.stdout.readline()).decode().strip()
    return line.removeprefix("Swarm listens on ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_from_sqlite_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    async with process(tmp_path, PORT="0") as started, aiohttp.ClientSession() as session:
        url = await address(started)
        assert url.startswith("http://127.0.0.1:")
        async with asyncio.timeout(30):
            while (await session.get(f"{url}/health/ready")).status != 200:
                await asyncio.sleep(0.01)
        made = await session.post(f"{url}/api/conversations", json={})
        assert made.status == 201
        started.send_signal(number)
        async with asyncio.timeout(10):
            _, errors = await started.communicate()
        assert started.returncode == 0, errors.decode()
        assert b"Traceback" not in errors
    assert (tmp_path / "var" / "swarm.db").exists()


async def said(started: asyncio.subprocess.Process) -> str:
    """The one sentence with which it refuses to start."""
    async with asyncio.timeout(30):
        output, errors = await started.communicate()
    assert (started.returncode, output) == (1, b"")
    sentence = next(line for line in errors.decode().splitlines() if not line.startswith("{"))
    assert b"Traceback" not in errors
    return sentence


async def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with process(tmp_path, PORT=str(port)) as started:
            sentence = await said(started)
    assert sentence == f"Cannot listen on 127.0.0.1:{port} (HOST, PORT): address already in use."


async def test_a_bad_setting_is_one_sentence(tmp_path: Path) -> None:
    async with process(tmp_path, PORT="x") as started:
        assert await said(started) == "PORT must be a whole number from 0 to 65535."


async def test_it_does_not_listen_beyond_loopback_without_credentials(tmp_path: Path) -> None:
    async with process(tmp_path, HOST="0.0.0.0", PORT=str(free_port())) as started:
        assert (await said(started)).startswith("HOST is 0.0.0.0, which others can reach")


async def test_it_listens_beyond_loopback_when_told_so_and_warns(tmp_path: Path) -> None:
    async with process(tmp_path, HOST="0.0.0.0", PORT="0", SWARM_ALLOW_UNAUTHENTICATED="1") as started:
        assert (await address(started)).startswith("http://0.0.0.0:")
        started.terminate()
        async with asyncio.timeout(10):
            _, errors = await started.communicate()
    assert b"no credentials are configured" in errors


async def test_it_prints_the_table_of_settings(tmp_path: Path) -> None:
    async with process(tmp_path, "settings") as started:
        async with asyncio.timeout(30):
            output, _ = await started.communicate()
    assert output.decode() == (ROOT / "docs" / "settings.md").read_text()


async def test_an_unknown_argument_does_not_start_a_server(tmp_path: Path) -> None:
    async with process(tmp_path, "--help", PORT="0") as started:
        async with asyncio.timeout(30):
            output, errors = await started.communicate()
        assert (started.returncode, output) == (2, b"")
    assert errors.startswith(b"usage: python -m server")
