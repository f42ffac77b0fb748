"""How many streams each has: a client's address, a principal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Tally(Generic[K]):
    """Counts by key, with room for `most` each; 0: for any number, and nothing is counted."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: Counter[K] = Counter()

    def __len__(self) -> int:
        """How many keys there is something to count of."""
        return len(self._counts)

    def full(self, key: K) -> bool:
        return bool(self._most) and self._counts[key] >= self._most

    def add(self, key: K) -> None:
        if self._most:
            self._counts[key] += 1

    def take(self, key: K) -> None:
        if self._most:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
