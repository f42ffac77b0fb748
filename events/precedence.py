"""Whoever ends a message goes before those that write into it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class _Changes:
    __slots__ = ("count", "over")

    def __init__(self) -> None:
        self.count = 0
        self.over = asyncio.Event()


class Precedence:
    """Holds back the deltas of a message, in this process, while something else is done to it.

    A change is made from what was read of the message, and each delta that is committed meanwhile makes it stale. A
    quick writer would see to that again and again.
    """

    def __init__(self) -> None:
        self._changes: dict[str, _Changes] = {}

    @contextmanager
    def of_change(self, message_id: str) -> Iterator[None]:
        """While inside, no delta of this message is begun."""
        changes = self._changes.setdefault(message_id, _Changes())
        changes.count += 1
        try:
            yield
        finally:
            changes.count -= 1
            if not changes.count:
                del self._changes[message_id]
                changes.over.set()

    async def give(self, message_id: str) -> None:
        """Waits until no change of this message is under way."""
        while (changes := self._changes.get(message_id)) is not None:
            await changes.over.wait()
