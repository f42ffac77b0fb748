"""Looks at the credentials of open streams again and again: a stream can be open for much longer than they are good."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from events.accesses import Accesses
from storage.recurring import Recurring

_MOST = 1_000  # credentials in one query


class Ended(Protocol):
    async def ended(self, ids: Sequence[str]) -> list[str]: ...


class AccessWatch(Recurring):
    """`heard_of` is told of what has ended elsewhere. While the database is away nobody is cut off for that."""

    name = "access watch"

    def __init__(
        self, accesses: Accesses, credentials: Ended, heard_of: Callable[[list[str]], None], period: float
    ) -> None:
        self._accesses = accesses
        self._credentials = credentials
        self._heard_of = heard_of
        self._period = period

    def pause(self) -> float:
        return self._period

    async def turn(self) -> None:
        await self.look()

    async def look(self) -> None:
        """One look at all of them."""
        ids = self._accesses.look(time.time())
        for first in range(0, len(ids), _MOST):
            ended = await self._credentials.ended(ids[first : first + _MOST])
            if ended:
                self._accesses.end(ended)
                self._heard_of(ended)
