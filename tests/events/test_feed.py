"""The feed, over a database that the test holds in its hands."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import cast
from unittest.mock import create_autospec

import pytest

from events.config import StreamConfig
from events.feed import Feeds
from events.multiplexed_stream import MultiplexedStream
from storage.conversations import Conversations, Touched
from storage.errors import StorageUnavailable


class _Lists:
    """Conversations of one tenant, by when they were last touched."""

    def __init__(self) -> None:
        self.away = False
        self.touches: dict[str, datetime] = {}

    async def touched(self, tenants: Sequence[str], since: datetime, limit: int) -> list[Touched]:
        if self.away:
            raise StorageUnavailable("away")
        found = [Touched("default", name, 1, False, at) for name, at in self.touches.items() if at >= since]
        return sorted(found, key=lambda touched: touched.at, reverse=True)[:limit]


async def test_what_others_change_while_the_database_is_out_of_reach_is_found_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr("events.feed.now", lambda: clock)
    lists = _Lists()
    feeds = Feeds(cast(Conversations, lists), StreamConfig())
    await feeds.join("default", create_autospec(MultiplexedStream, instance=True))
    lists.away = True
    lists.touches["c"] = clock + timedelta(seconds=1)
    clock += timedelta(minutes=10)
    with pytest.raises(StorageUnavailable):
        await feeds.compare()
    lists.away = False
    await feeds.compare()
    assert feeds._feeds["default"].touched.keys() == {"c"}


@pytest.mark.parametrize(("seconds", "renewed"), [(1.0, True), (-10.0, False)])
async def test_readers_read_their_lists_again_when_more_has_changed_than_one_look_shows(
    monkeypatch: pytest.MonkeyPatch, seconds: float, renewed: bool
) -> None:
    """One of them was told already, but others are missing in the look. What is old was seen before."""
    clock = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr("events.feed.now", lambda: clock)
    lists = _Lists()
    feeds = Feeds(cast(Conversations, lists), StreamConfig())
    reader = create_autospec(MultiplexedStream, instance=True)
    lists.touches["told"] = clock
    await feeds.join("default", reader)
    lists.touches |= {str(n): clock + timedelta(seconds=seconds) for n in range(1_200)}
    clock += timedelta(seconds=2)
    await feeds.compare()
    assert reader.renew.called == renewed
