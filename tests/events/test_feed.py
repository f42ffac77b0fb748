"""The feed, over a database that the test holds in its hands."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import cast
from unittest.mock import create_autospec

import pytest

from events.config import StreamConfig
from events.feed import Feeds
from events.multiplexed_stream import MultiplexedStream
from storage.conversations import Conversations
from storage.errors import StorageUnavailable


class _Lists:
    """Conversations of one tenant, by when they were last touched."""

    def __init__(self) -> None:
        self.away = False
        self.touches: dict[str, datetime] = {}

    async def touched(self, tenants: Sequence[str], since: datetime, limit: int) -> list[tuple[str, str, int, bool]]:
        if self.away:
            raise StorageUnavailable("away")
        return [("default", name, 1, False) for name, at in self.touches.items() if at >= since]


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
