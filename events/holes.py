"""Holes: events that a channel has not heard, while it has heard of later ones. They are read from the log.

A hole is filled, never skipped: who reads a conversation gets each of its events in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from events.channel import Channel
from events.config import StreamConfig
from events.frame import event_frame
from events.replay import Timeline
from metrics.streams import StreamMetrics
from storage.errors import StorageError
from storage.log import Log

log = structlog.get_logger(__name__)


class Holes:
    """`slots` bounds how many pages are read at once; `grown` is told of channels that have heard more."""

    def __init__(
        self,
        events: Log,
        config: StreamConfig,
        metrics: StreamMetrics,
        timeline: Timeline,
        slots: asyncio.Semaphore,
        grown: Callable[[Channel], None],
    ) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._log = events
        self._config = config
        self._metrics = metrics
        self._timeline = timeline
        self._slots = slots
        self._grown = grown

    def noticed(self, channel: Channel) -> None:
        """A frame has come before the one it follows, which may be on its way."""
        if channel.known and not channel.filling:
            self._begin(channel, self._config.early)

    def fill(self, channel: Channel) -> None:
        """Reads what the log has and the channel has not heard of."""
        if channel.known and not channel.filling:
            self._begin(channel, 0.0)

    def _begin(self, channel: Channel, delay: float) -> None:
        channel.filling = True
        task = asyncio.create_task(self._fill(channel, delay), name="fill")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _fill(self, channel: Channel, delay: float) -> None:
        """Reads what the channel has not heard, up to the log's head."""
        beginning = channel.beginning
        found = again = False
        try:
            if delay:
                await asyncio.sleep(delay)
                if not channel.early:
                    return  # what was missing has come by itself
            while True:
                async with self._slots:
                    page = await self._log.page(
                        channel.tenant,
                        channel.conversation_id,
                        channel.last_seq,
                        limit=self._config.page_events,
                        budget=self._config.page_chars,
                    )
                if not await self._timeline.agrees(page.epoch) or channel.beginning != beginning:
                    break
                purged = channel.last_seq < page.floor
                if purged:
                    channel.skip(page.floor)
                    self._grown(channel)
                for event in page.events:
                    if event.seq <= channel.last_seq:
                        continue
                    found = True
                    epoch = self._timeline.epoch
                    frame = event_frame(event.kind, channel.conversation_id, event.seq, event.payload, epoch)
                    if channel.hear(event.seq, event.kind, frame):
                        self._grown(channel)
                if channel.last_seq >= page.head or not (page.events or purged):
                    break
        except StorageError as error:
            log.warning("hole not filled yet", conversation_id=channel.conversation_id, error=str(error))
        else:
            # A hole that has opened while this one was filled: nobody else would look for it at once.
            again = found and bool(channel.early) and channel.known
        finally:
            channel.filling = False
            if found:
                self._metrics.repaired("early" if delay else "comparison")
            if again:
                self._begin(channel, self._config.early)
