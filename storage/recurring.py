"""Work on the database that is done again and again in the background, whatever it meets."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import ClassVar

import structlog

from storage.errors import StorageError

log = structlog.get_logger(__name__)


class Recurring(ABC):
    """Takes its `turn` from `start` to `close`, with a pause between two. What a turn raises is logged."""

    name: ClassVar[str]
    _task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins, in a task of its own."""
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def close(self) -> None:
        """Ends it; no turn begins any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def begin(self) -> None:
        """Waits until the first turn may come."""
        await asyncio.sleep(self.pause())

    @abstractmethod
    async def turn(self) -> None:
        """Does it once."""

    @abstractmethod
    def pause(self) -> float:
        """Seconds until the next turn."""

    async def _run(self) -> None:
        await self.begin()
        while True:
            try:
                await self.turn()
            except StorageError as error:
                log.warning("background work waits for the database", work=self.name, error=str(error))
            except Exception:
                log.exception("background work failed", work=self.name)
            await asyncio.sleep(self.pause())
