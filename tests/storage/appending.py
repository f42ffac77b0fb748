"""The appender as a child of the test: started, listened to, killed."""

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.storage.store import TIMEOUT, until

_ROOT = Path(__file__).parents[2]


class Acknowledged(NamedTuple):
    """What a client of the child was told; `seq` is None where it was told of an earlier attempt."""

    conversation: str
    position: int
    seq: int | None
    content: str


class Appender:
    """`tests.storage.appender` in a process of its own. `acknowledged` grows as its lines arrive."""

    def __init__(self, url: str, name: str, conversations: list[str], *, writers: int = 8, turns: int = 0) -> None:
        self.acknowledged: list[Acknowledged] = []
        self._arguments = [url, name.replace(" ", "_"), str(writers), str(turns), *conversations]
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.storage.appender",
            *self._arguments,
            cwd=_ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._listening = asyncio.create_task(self._listen(self._process))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.kill()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        # A line that was cut off by the kill was not said.
        while (line := await process.stdout.readline()).endswith(b"\n"):
            words = line.decode().split()
            if len(words) == 4 and words[1].isdecimal():
                seq = None if words[2] == "-" else int(words[2])
                self.acknowledged.append(Acknowledged(words[0], int(words[1]), seq, words[3]))

    async def said(self, count: int) -> None:
        """Waits until it has acknowledged so many more."""
        goal = len(self.acknowledged) + count
        process = self._process
        assert process is not None
        await until(lambda: len(self.acknowledged) >= goal or process.returncode is not None)
        assert process.returncode is None, "the appender has ended"

    async def finished(self) -> None:
        """Waits until it has ended by itself."""
        assert self._process is not None
        assert self._listening is not None
        async with asyncio.timeout(TIMEOUT):
            await self._listening
            assert await self._process.wait() == 0

    async def kill(self) -> None:
        """`kill -9`, and the lines that were on their way."""
        assert self._process is not None
        assert self._listening is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(TIMEOUT):
            await self._listening
            await self._process.wait()
