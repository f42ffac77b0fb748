"""The pump: one task that writes to every subscriber what it lacks.

An event is written at once when the hub is idle. A busy hub joins what becomes ready until a little after the end of
its last flush: counted from its start, the readers at the end of the line would never be done. Who lacks the same is
given the same bytes, joined and framed once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from events.channel import Channel
from events.config import StreamConfig
from events.frame import chunk, ready_frame
from events.subscriber import Subscriber

log = structlog.get_logger(__name__)


class Pump:
    def __init__(self, config: StreamConfig, epoch: Callable[[], str], catch_up: Callable[[Subscriber], None]) -> None:
        self._config = config
        self._epoch = epoch
        self._catch_up = catch_up  # starts to read from the log for one whom the ring cannot serve
        self._dirty: dict[Channel, None] = {}
        self._wake = asyncio.Event()
        self._turn_ends = 0.0

    def wake(self, channel: Channel) -> None:
        """Something is to be written in this channel."""
        self._dirty[channel] = None
        self._wake.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ended = 0.0
        while True:
            if not self._dirty:
                self._wake.clear()
                await self._wake.wait()
            rest = ended + self._config.gap - loop.time()
            if rest > 0:
                await asyncio.sleep(rest)
            self._turn_ends = loop.time() + self._config.turn
            dirty, self._dirty = self._dirty, {}
            for channel in dirty:
                try:
                    await self._flush(channel, loop)
                except Exception:
                    # One conversation's trouble must not silence the others.
                    log.exception("flush failed", conversation_id=channel.conversation_id)
            ended = loop.time()

    async def _flush(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        """One slice to each subscriber of the channel. What is left makes the channel dirty again."""
        if channel.live and channel.flushed < channel.last_seq:
            await self._flush_live(channel, loop)
        elif not channel.live:
            channel.flushed = channel.last_seq
        slices: dict[tuple[int, int | None], tuple[bytes, int]] = {}
        for subscriber in list(channel.behind):
            if subscriber.gone or subscriber.paused or subscriber.catching_up:
                continue
            self._advance(channel, subscriber, slices)
            await self._yield_when_due(loop)
        if channel.flushed < channel.last_seq:
            self.wake(channel)

    async def _flush_live(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        if not channel.holds(channel.flushed):
            # More came than may wait for them: they catch up from the log, each at its own pace.
            for subscriber in channel.live:
                subscriber.position = channel.flushed
                channel.behind[subscriber] = None
            channel.live.clear()
            channel.flushed = channel.last_seq
            return
        data, reached = channel.join(channel.flushed, self._config.slice_bytes)
        framed = chunk(data)
        # Whoever joins or leaves while others are being written to: a newcomer comes by way of `behind`.
        for count, subscriber in enumerate(list(channel.live)):
            transport = subscriber.transport
            if transport is None:
                continue
            transport.write(framed if subscriber.chunked else data)
            if subscriber.paused:
                subscriber.position = reached
                channel.live.pop(subscriber, None)
                channel.behind[subscriber] = None
            if count % 64 == 63:
                await self._yield_when_due(loop)
        channel.flushed = reached
        if channel.ended and reached == channel.last_seq:
            for subscriber in list(channel.live):
                subscriber.finish()

    def _advance(
        self,
        channel: Channel,
        subscriber: Subscriber,
        slices: dict[tuple[int, int | None], tuple[bytes, int]],
    ) -> None:
        """Gives a subscriber with a position of its own what it lacks, and lets it join the others when it is level."""
        if subscriber.ready_at is None and subscriber.position == channel.flushed:
            self._join_live(channel, subscriber)
            return
        if not channel.holds(subscriber.position):
            self._catch_up(subscriber)
            return
        data, reached = b"", subscriber.position
        if subscriber.position < channel.last_seq:
            key = (subscriber.position, subscriber.ready_at)
            if key not in slices:
                slices[key] = channel.join(subscriber.position, self._config.slice_bytes, subscriber.ready_at)
            data, reached = slices[key]
        if subscriber.ready_at is not None and reached >= subscriber.ready_at:
            data += ready_frame(subscriber.ready_at, self._epoch())
            subscriber.ready_at = None
        subscriber.position = reached
        if data:
            subscriber.write(data)
        if channel.ended and reached == channel.last_seq:
            subscriber.finish()
        elif subscriber.paused or reached > channel.last_seq:
            return  # goes on when the transport has drained, or when the channel has heard of what it has
        elif reached == channel.flushed:
            self._join_live(channel, subscriber)
        else:
            self.wake(channel)

    def _join_live(self, channel: Channel, subscriber: Subscriber) -> None:
        if channel.ended and channel.flushed == channel.last_seq:
            subscriber.finish()  # it has the last event: it was full when the others ended, or resumed after it
            return
        channel.behind.pop(subscriber, None)
        channel.live[subscriber] = None

    async def _yield_when_due(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.time() >= self._turn_ends:
            await asyncio.sleep(0)
            self._turn_ends = loop.time() + self._config.turn
