"""Comparing what is watched with the database: how a process finds what nobody has told it.

Without a doorbell this is how processes hear of each other. With one it finds what was lost: at each subscription, and
now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import structlog

from events.bus import Bus
from events.channel import Channel
from events.config import StreamConfig
from events.feed import Feeds
from storage.errors import StorageError
from storage.log import Log

log = structlog.get_logger(__name__)

_LEAST = 0.05  # seconds between two looks where the last one found something
_SLOWER = 1.5  # each look that finds nothing makes the next one wait so much longer


class Watching(Protocol):
    """What is watched, and what is done about what is found: the hub."""

    feeds: Feeds

    @property
    def channels(self) -> Mapping[tuple[str, str], Channel]: ...

    async def agrees(self, epoch: str) -> bool: ...

    async def refresh_epoch(self) -> str: ...

    def fill(self, channel: Channel) -> None:
        """The log has more than the channel has heard of."""

    def went_back(self, channel: Channel, head: int) -> None:
        """The log has less."""


class Comparison:
    def __init__(self, watching: Watching, events: Log, bus: Bus, config: StreamConfig) -> None:
        self._watching = watching
        self._log = events
        self._bus = bus
        self._config = config
        self._asked: dict[Channel, None] = {}
        self._asked_feeds = False
        self._wake = asyncio.Event()
        self._interval = config.compare

    def ask(self, channel: Channel) -> None:
        """Something may have been missed in this channel: it is looked at at once."""
        self._asked[channel] = None
        self._wake.set()

    def ask_feeds(self) -> None:
        """The same of the feeds."""
        self._asked_feeds = True
        self._wake.set()

    async def run(self) -> None:
        """Compares what it is asked for at once, and everything now and then. One query at a time."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            if loop.time() >= due:
                # Its turn comes however much is asked for: a wait for what has happened already times out never.
                # What nobody reads may wait until somebody does.
                read = [channel for channel in self._watching.channels.values() if not channel.empty]
                await self._compare(read, feeds=True)
                due = loop.time() + self._pause()
            else:
                self._wake.clear()
                asked, self._asked = self._asked, {}
                feeds, self._asked_feeds = self._asked_feeds, False
                await self._compare(asked, feeds=feeds)

    def _pause(self) -> float:
        return self._config.compare_rung if self._bus.live else self._interval

    async def _compare(self, channels: Iterable[Channel], *, feeds: bool) -> None:
        watching = self._watching
        known = {
            channel.conversation_id: (channel, channel.last_seq, channel.beginning)
            for channel in channels
            if channel.known
        }
        feeds = feeds and bool(watching.feeds)
        try:
            if known:
                movement = await self._log.moved(
                    [(channel.tenant, channel.conversation_id, seq) for channel, seq, _ in known.values()]
                )
                if not await watching.agrees(movement.epoch):
                    return
                self._interval = _LEAST if movement.moved else min(self._interval * _SLOWER, self._config.compare)
                for conversation_id, head in movement.moved:
                    channel, seq, beginning = known[conversation_id]
                    if channel.beginning != beginning:
                        continue
                    if head < seq:
                        watching.went_back(channel, head)
                    elif head > channel.last_seq:
                        watching.fill(channel)
            if feeds:
                # Where no channel told the epoch, this does.
                if not known and not await watching.agrees(await watching.refresh_epoch()):
                    return
                await watching.feeds.compare()
        except StorageError as error:
            log.warning("not compared with the database", error=str(error))
        except Exception:
            log.exception("not compared with the database")
