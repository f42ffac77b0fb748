"""The disk runs full under the server: it says so, and what it has acknowledged stays."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests import proof
from tests.faults.deployment import ROOT
from tests.faults.follower import caught_up, follow, stop_all
from tests.faults.writer import stored
from tests.free_port import free_port

pytestmark = pytest.mark.fault

_SIZE = "6m"
# A small disk that only this process and its children see: mounting it takes a namespace, not root.
_ON_A_SMALL_DISK = f"""
mount -t tmpfs -o size={_SIZE} tmpfs "$1" || exit 99
"$2" -m server
"$2" -c 'import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute("PRAGMA integrity_check").fetchall())' \\
    "$1/swarm.db"
"""


def _namespace() -> list[str]:
    """What a command is started with; skips where the machine gives no namespaces."""
    unshare = shutil.which("unshare")
    if unshare is not None:
        command = [unshare, "--user", "--map-root-user", "--mount"]
        if subprocess.run([*command, "true"], capture_output=True, check=False, timeout=10).returncode == 0:
            return command
    pytest.skip("mounting a small disk takes a user namespace, which this machine does not give")


@pytest.mark.timeout(300)
async def test_a_full_disk_is_507_and_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    command = [*await asyncio.to_thread(_namespace), "sh", "-c", _ON_A_SMALL_DISK, "sh", str(tmp_path), sys.executable]
    port = free_port()
    environment = {**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path}/swarm.db", "PORT": str(port)}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert b"listens" in await process.stdout.readline()
        acknowledged: dict[str, str] = {}
        refused: list[int] = []
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.post("/api/conversations", json={}) as answer:
                conversation_id = str((await answer.json())["id"])
            readers = await follow(port, conversation_id, 3)
            number = 0
            while len(refused) < 30 and number < 1_000:
                number += 1
                # Small ones among them: some may still find a place.
                text = f"{number} " + "." * (50_000 if number % 3 else 100)
                body = {"role": "user", "content": text}
                async with session.post(f"/api/conversations/{conversation_id}/messages", json=body) as answer:
                    made = await answer.json()
                    if answer.status == 201:
                        acknowledged[made["id"]] = text
                    else:
                        assert answer.content_type == "application/problem+json", made
                        refused.append(answer.status)
            assert set(refused) <= {503, 507}
            assert 507 in refused
            messages, head = await stored(session, conversation_id)
            assert messages == acknowledged
            await caught_up(readers, head)
            async with session.get("/health") as answer:
                assert (await answer.json())["async_database"] == "connected"
            await stop_all(readers)
        [server] = [p for p in psutil.Process(process.pid).children(recursive=True) if "server" in p.cmdline()]
        server.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
        assert b"[('ok',)]" in said
    finally:
        if process.returncode is None:
            for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                member.kill()
            await process.wait()
    proof.record(
        f"a disk of {_SIZE} runs full",
        "sqlite",
        f"{len(acknowledged)} acknowledged, all there; {refused.count(507)} times 507, {refused.count(503)} times 503",
        "integrity_check ok",
    )
