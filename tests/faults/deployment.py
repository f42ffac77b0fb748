"""Swarm as it is deployed: gunicorn and its workers, as processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import psutil

from tests.faults.follower import until
from tests.free_port import free_port

ROOT = Path(__file__).parents[2]

# So that readers come back within a test's patience; the rest is as it is deployed.
_SETTINGS = {"SWARM_STREAM_RETRY": "0.2", "SWARM_LOG_LEVEL": "WARNING"}


_IN_A_ROW = 6


class Deployment:
    """One gunicorn master on one port of 127.0.0.1, however often it is ended and started again."""

    def __init__(self, database_url: str, redis_url: str | None = None, *, workers: int = 2, **settings: str) -> None:
        self.port = free_port()
        self.workers = workers
        redis = {} if redis_url is None else {"REDIS_URL": redis_url}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SWARM_", "PROMETHEUS_"))},
            "DATABASE_URL": database_url,
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "WEB_CONCURRENCY": str(workers),
            **_SETTINGS,
            **redis,
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="swarm-deployment-")
        self._log = Path(self._folder.name) / "log"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
        if error is not None:
            print(self.said()[-4_000:])
        self._folder.cleanup()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def said(self) -> str:
        """All that it has logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def master(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def worker_processes(self) -> list[psutil.Process]:
        """Its workers, oldest first."""
        return sorted(filter(is_alive, self.master.children()), key=lambda child: child.create_time())

    async def start(self, *, healthy: bool = True) -> None:
        """Returns when all workers are there, and the first answers that it is healthy."""
        self._process = await asyncio.to_thread(self._launch)
        await until(lambda: len(self.worker_processes()) == self.workers, "workers")
        if healthy:
            await self.healthy()

    def _launch(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--config", "server/gunicorn_conf.py"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for the tests
            )

    async def healthy(self) -> dict[str, Any]:
        """What `/health` says, once it is 200 so often in a row that all workers must have been asked."""
        connector = aiohttp.TCPConnector(force_close=True)  # any worker may take each connection
        in_a_row = 0
        found: dict[str, Any] = {}
        async with aiohttp.ClientSession(self.origin, connector=connector) as session, asyncio.timeout(60):
            while True:
                try:
                    async with session.get("/health", timeout=aiohttp.ClientTimeout(10)) as answer:
                        in_a_row = in_a_row + 1 if answer.status == 200 else 0
                        found = await answer.json()
                except (aiohttp.ClientError, TimeoutError):
                    in_a_row = 0
                if in_a_row >= _IN_A_ROW * self.workers:
                    return found
                if not in_a_row:
                    await asyncio.sleep(0.05)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all workers, and over all labels but those that are given."""
        async with aiohttp.ClientSession(self.origin) as session, session.get("/metrics") as answer:
            text = await answer.text()
        said = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [
            line
            for line in text.splitlines()
            if line.startswith((f"{name}{{", f"{name} ")) and all(one in line for one in said)
        ]
        assert lines, name
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    async def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Sends the master a signal; its exit code, and how long it took, in seconds."""
        assert self._process is not None
        begun = time.perf_counter()
        self._process.send_signal(number)
        code = await asyncio.to_thread(self._process.wait, 60)
        return code, time.perf_counter() - begun

    async def kill(self) -> None:
        """The master at once; its workers end by themselves when they notice."""
        await self.end(signal.SIGKILL)

    async def close(self) -> None:
        """Ends whatever of it still runs."""
        if self._process is None or self._process.poll() is not None:
            return
        family = [self.master, *self.master.children(recursive=True)]
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, 30)
        except subprocess.TimeoutExpired:
            for member in family:
                if is_alive(member):
                    member.kill()
            self._process.wait(10)


def is_alive(process: psutil.Process) -> bool:
    """Where process 1 reaps no orphans they stay as zombies, which do nothing."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
