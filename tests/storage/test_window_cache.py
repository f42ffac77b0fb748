"""What is kept in memory: in bounded bytes, the longest unused goes first, and what is outdated goes at once."""

from __future__ import annotations

import tracemalloc

import pytest
from prometheus_client import CollectorRegistry

from metrics.cache import CacheMetrics
from storage.records import Version, Window
from storage.window_cache import _OVERHEAD, Conversation, WindowCache, WindowKey

SIZE = 10_000  # of a window, with what it takes besides its bytes
FIRST, SECOND = Version("epoch", 1), Version("epoch", 2)


def key(place: int, conversation: str = "chat", tenant: str = "acme") -> WindowKey:
    return WindowKey(Conversation(tenant, conversation), ("from", place, 50))


def window(version: Version = FIRST, size: int = SIZE) -> Window:
    return Window(b"x" * (size - _OVERHEAD), "digest", 1, 50, settled=True, total=50, version=version)


class Kept:
    """A cache with room for `count` windows of `SIZE`, and its figures."""

    def __init__(self, count: int) -> None:
        self._registry = CollectorRegistry()
        self.cache = WindowCache(count * SIZE, CacheMetrics(self._registry))

    def places(self) -> list[int]:
        return [place for place in range(10) if key(place) in self.cache]

    def shown_bytes(self) -> float | None:
        return self._registry.get_sample_value("swarm_cache_bytes")


def test_what_was_used_longest_ago_goes_first() -> None:
    kept = Kept(3)
    for place in (1, 2, 3):
        kept.cache.keep(key(place), window())
    assert kept.cache.take(key(1), FIRST) is not None
    kept.cache.keep(key(4), window())
    assert kept.places() == [1, 3, 4]
    kept.cache.keep(key(5), window(size=2 * SIZE))
    assert kept.places() == [4, 5]


def test_its_bytes_are_bounded_and_shown() -> None:
    kept = Kept(3)
    for place in range(10):
        kept.cache.keep(key(place), window(size=SIZE // 2 + place))
        assert kept.cache.bytes <= 3 * SIZE
        assert kept.shown_bytes() == kept.cache.bytes
    assert len(kept.cache) == 5


def test_a_window_that_takes_another_ones_place_is_counted_once() -> None:
    kept = Kept(3)
    for _ in range(5):
        kept.cache.keep(key(1), window())
    assert (len(kept.cache), kept.cache.bytes) == (1, SIZE)


def test_a_window_that_is_larger_than_all_of_it_pushes_nothing_out() -> None:
    kept = Kept(2)
    kept.cache.keep(key(1), window())
    kept.cache.keep(key(2), window(size=2 * SIZE + 1))
    assert kept.places() == [1]


def test_with_no_room_nothing_is_kept() -> None:
    kept = Kept(0)
    kept.cache.keep(key(1), window(size=_OVERHEAD))
    assert (len(kept.cache), kept.shown_bytes()) == (0, 0)


@pytest.mark.parametrize("version", [SECOND, Version("another", 1), None], ids=["seq", "epoch", "gone"])
def test_what_is_of_another_version_is_let_go_of_with_its_conversation(version: Version | None) -> None:
    kept = Kept(5)
    for place in (1, 2):
        kept.cache.keep(key(place), window())
    kept.cache.keep(key(3), window(SECOND))
    others = (key(1, conversation="another"), key(1, tenant="another"))
    for other in others:
        kept.cache.keep(other, window())
    assert kept.cache.take(key(1), version) is None
    assert kept.places() == ([3] if version == SECOND else [])
    assert all(kept.cache.take(other, FIRST) is not None for other in others)
    assert kept.shown_bytes() == kept.cache.bytes == SIZE * len(kept.cache)


def test_what_was_let_go_of_leaves_nothing_behind() -> None:
    kept = Kept(2)
    for number in range(100):
        kept.cache.keep(key(number, conversation=str(number)), window())
    assert len(kept.cache._keys) == 2
    for number in (98, 99):
        assert kept.cache.take(key(number, conversation=str(number)), None) is None
    assert not kept.cache._keys
    assert kept.cache.bytes == 0


def test_no_window_takes_more_than_is_counted() -> None:
    cache = WindowCache(2**30, CacheMetrics(CollectorRegistry()))
    tracemalloc.start()
    try:
        for number in range(2_000):
            version = Version(f"epoch {number}", 10**9 + number)
            one = Window(b"", f"{number:032}", 10**9 + number, 2 * 10**9, settled=True, total=number, version=version)
            cache.keep(key(10**6 + number, f"{number:036}", f"tenant {number}"), one)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= cache.bytes
