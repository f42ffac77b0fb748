"""`python -m server`, as a process of its own."""

import asyncio
import os
import sys
from pathlib import Path

from tests.free_port import free_port

ROOT = Path(__file__).parent.parent


class ServerProcess:
    """The server on one port of 127.0.0.1, however often it is ended and started again. `code` is where its own is,
    `log` where its log goes."""

    def __init__(self, database_url: str, *, code: Path = ROOT, log: Path = Path(os.devnull), **settings: str) -> None:
        self.port = free_port()
        self._code = code
        self._log = log
        self._environment = {**os.environ, "DATABASE_URL": database_url, "PORT": str(self.port), **settings}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def origin(self) -> str:
        """Where it is found: scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process, once it was started."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Returns when it listens."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "server",
                cwd=self._code,
                env=self._environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            assert b"listens" in await self._process.stdout.readline()

    async def end(self, number: int) -> int:
        """Sends it that signal, waits, and returns its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        async with asyncio.timeout(30):
            return await self._process.wait()
