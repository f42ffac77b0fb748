"""Looks at the credentials of open streams again and again: a stream can be open for much longer than they are good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from events.accesses import Accesses
from storage.errors import StorageError

log = structlog.get_logger(__name__)

_MOST = 1_000  # credentials in one query


class Ended(Protocol):
    async def ended(self, ids: Sequence[str]) -> list[str]: ...


class AccessWatch:
    """`heard_of` is told of what has ended elsewhere. While the database is away nobody is cut off for that."""

    def __init__(
        self, accesses: Accesses, credentials: Ended, heard_of: Callable[[list[str]], None], period: float
    ) -> None:
        self._accesses = accesses
        self._credentials = credentials
        self._heard_of = heard_of
        self._period = period
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="watch accesses")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._period)
            try:
                await self.look()
            except StorageError as error:
                log.warning("credentials of streams are not looked at", error=str(error))
            except Exception:
                log.exception("looking at the credentials of streams failed")

    async def look(self) -> None:
        """One look at all of them."""
        ids = self._accesses.look(time.time())
        for first in range(0, len(ids), _MOST):
            ended = await self._credentials.ended(ids[first : first + _MOST])
            if ended:
                self._accesses.end(ended)
                self._heard_of(ended)
