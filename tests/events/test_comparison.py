"""When the hub's channels are compared with the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from events.bus import NoBus
from events.channel import Channel
from events.comparison import Comparison
from events.config import StreamConfig
from storage.records import Movement

_TIMEOUT = 10.0


class _Log:
    """A database that takes a turn of the loop for each query, in which somebody asks for the next one."""

    def __init__(self) -> None:
        self.comparison: Comparison | None = None
        self.asked_again: Channel | None = None

    async def moved(self, known: Sequence[tuple[str, str, int]]) -> Movement:
        await asyncio.sleep(0)
        assert self.comparison is not None
        assert self.asked_again is not None
        self.comparison.ask(self.asked_again)
        return Movement("e", [(conversation, seq + 1) for _, conversation, seq in known if conversation == "missed"])


class _Watching:
    def __init__(self, channels: list[Channel]) -> None:
        self.channels = {(channel.tenant, channel.conversation_id): channel for channel in channels}
        self.feeds: list[object] = []
        self.filled = asyncio.Event()

    async def agrees(self, epoch: str) -> bool:
        return True

    def fill(self, channel: Channel) -> None:
        assert channel.conversation_id == "missed"
        self.filled.set()


def _channel(conversation_id: str) -> Channel:
    channel = Channel("default", conversation_id, 1024, 1024)
    channel.begin(0, 1)
    reader: Any = object()
    channel.live[reader] = None
    return channel


async def test_what_is_asked_for_all_the_time_keeps_nobody_from_the_look_at_everything() -> None:
    """As when a crowd comes back: each confirmation of a subscription asks."""
    busy, missed = _channel("busy"), _channel("missed")
    log: Any = _Log()
    watching: Any = _Watching([busy, missed])
    log.comparison = comparison = Comparison(watching, log, NoBus(), StreamConfig(compare=0.05))
    log.asked_again = busy
    running = asyncio.create_task(comparison.run())
    try:
        async with asyncio.timeout(_TIMEOUT):
            await watching.filled.wait()  # the first look
            watching.filled.clear()
            await watching.filled.wait()  # and the next, while `busy` is asked for without a pause
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
