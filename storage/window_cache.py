"""Windows in memory: those that were read last, in a bounded number of bytes."""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from metrics.cache import CacheMetrics
from storage.records import Version, Window

# What a window takes besides its bytes: its key, its records, and its places in two tables.
_OVERHEAD = 1_280


class Conversation(Struct, frozen=True):
    """Whose windows belong together."""

    tenant: str
    id: str


class WindowKey(Struct, frozen=True):
    """`place` is which of the conversation's windows it is."""

    conversation: Conversation
    place: tuple[str, int, int]


class WindowCache:
    """Knows nothing of what is true: who takes a window out says which version it must be of.

    `limit` is in bytes; with 0 nothing is kept.
    """

    def __init__(self, limit: int, metrics: CacheMetrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._bytes = 0
        self._windows: OrderedDict[WindowKey, Window] = OrderedDict()  # the one that was used longest ago is first
        self._keys: dict[Conversation, set[WindowKey]] = {}

    def __contains__(self, key: WindowKey) -> bool:
        return key in self._windows

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def bytes(self) -> int:
        """About what its windows take."""
        return self._bytes

    def keep(self, key: WindowKey, window: Window) -> None:
        """Lets go of others where there is no room; a window that is larger than all of it is not kept."""
        if key in self._windows:
            self._drop(key)
        size = _size(window)
        if size <= self._limit:
            while self._bytes + size > self._limit:
                self._drop(next(iter(self._windows)))
            self._windows[key] = window
            self._keys.setdefault(key.conversation, set()).add(key)
            self._bytes += size
        self._metrics.bytes.set(self._bytes)

    def take(self, key: WindowKey, version: Version | None) -> Window | None:
        """The window, if it is of that version. Windows of its conversation that are of another one are let go of."""
        window = self._windows.get(key)
        if window is not None and window.version == version:
            self._windows.move_to_end(key)
            return window
        for other in [*self._keys.get(key.conversation, ())]:
            if self._windows[other].version != version:
                self._drop(other)
        self._metrics.bytes.set(self._bytes)
        return None

    def _drop(self, key: WindowKey) -> None:
        self._bytes -= _size(self._windows.pop(key))
        keys = self._keys[key.conversation]
        keys.remove(key)
        if not keys:
            del self._keys[key.conversation]


def _size(window: Window) -> int:
    return len(window.items) + _OVERHEAD
