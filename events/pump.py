"""The pump: one task that writes to every subscriber what it lacks.

An event is written at once when the hub is idle. A busy hub joins what becomes ready until a little after the end of
its last flush: counted from its start, the readers at the end of the line would never be done. Who lacks the same is
given the same bytes, joined and framed once. More of a text is given in ticks (decision 13).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from events.channel import Channel
from events.config import StreamConfig
from events.frame import chunk, pieces
from events.socket_first import write_to_each
from events.stream import Stream
from events.subscriber import Subscriber
from metrics.streams import StreamMetrics

log = structlog.get_logger(__name__)

# So many events of one conversation in one flush are many. Of 100 messages a second to a thousand readers two meet now
# and then, for a flush takes most of the time between them: the longer rest would keep them together for ever.
_MANY = 3

_ROW = 64  # readers that are written to between two looks at the clock

# How often the loop turns between two turns of the pump: a request takes a few turns to be answered, and while it waits
# for the pump its client posts nothing that could be joined.
_TURNS = 3

# What readers at one position are given, by (position, up to which seq, with ids): data and the seq it ends with.
Slices = dict[tuple[int, int | None, bool], list[tuple[bytes, int]]]


class Pump:
    def __init__(self, config: StreamConfig, metrics: StreamMetrics, catch_up: Callable[[Subscriber], None]) -> None:
        self._config = config
        self._metrics = metrics
        self._catch_up = catch_up  # starts to read from the log for one whom the ring cannot serve
        self._dirty: dict[Channel, None] = {}
        self._resting: dict[Channel, asyncio.TimerHandle] = {}  # woken in a moment
        self._collected: dict[Stream, None] = {}
        self._collected_since: list[float] = []  # when the oldest of it was committed, for each channel
        self._wake = asyncio.Event()
        self._turn_ends = 0.0
        self._most = 0  # events that were given to one conversation's readers together, in this flush

    def wake(self, channel: Channel) -> None:
        """Something is to be written in this channel."""
        self._dirty[channel] = None
        self._wake.set()

    def heard(self, channel: Channel) -> None:
        """The channel's ring has grown. More of texts waits a little for more of the same."""
        loop = asyncio.get_running_loop()
        due = channel.flushed_at + self._config.delta_gap
        if channel.urgent or loop.time() >= due:
            self.wake(channel)
        elif channel not in self._resting:
            self._resting[channel] = loop.call_at(due, self._rested, channel)

    def _rested(self, channel: Channel) -> None:
        del self._resting[channel]
        self.wake(channel)

    def collected(self, stream: Stream) -> None:
        """The stream holds something that is to be written at the end of the turn."""
        self._collected[stream] = None
        self._wake.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ended = 0.0
        while True:
            if not self._dirty and not self._collected:
                self._wake.clear()
                await self._wake.wait()
            gap = self._config.busy_gap if self._most >= _MANY else self._config.gap
            rest = ended + gap - loop.time()
            if rest > 0:
                await asyncio.sleep(rest)
            self._most = 0
            self._turn_ends = loop.time() + self._config.turn
            dirty, self._dirty = self._dirty, {}
            for channel in dirty:
                try:
                    await self._flush(channel, loop)
                except Exception:
                    # One conversation's trouble must not silence the others.
                    log.exception("flush failed", conversation_id=channel.conversation_id)
            await self._write_collected(loop)
            ended = loop.time()

    async def _write_collected(self, loop: asyncio.AbstractEventLoop) -> None:
        collected, self._collected = self._collected, {}
        for count, stream in enumerate(collected):
            was_full = stream.full
            try:
                stream.flush()
                if was_full and not stream.full:
                    stream.keeper.resumed(stream)  # its channels have passed over it in this turn
            except Exception:
                # One reader's trouble must not silence the others, either.
                log.exception("write failed")
            if count % 64 == 63:
                await self._yield_when_due(loop)
        since, self._collected_since = self._collected_since, []
        for committed_at in since:
            self._metrics.lagged(time.monotonic() - committed_at)

    async def _flush(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        """One slice to each subscriber of the channel. What is left makes the channel dirty again."""
        if not channel.known:
            return  # woken again when it begins
        beginning, head = channel.beginning, channel.last_seq
        if channel.live and channel.flushed < channel.last_seq:
            await self._flush_live(channel, loop)
        else:
            channel.flush(channel.last_seq)
        slices: Slices = {}
        given = 0
        for subscriber in list(channel.behind):
            if channel.beginning != beginning:
                break
            if subscriber.gone or subscriber.stream.full or subscriber.catching_up:
                continue
            position = subscriber.position
            try:
                self._advance(channel, subscriber, slices)
            except Exception as error:
                self._give_up(subscriber, error)
            given += subscriber.position - position
            await self._yield_when_due(loop)
        self._metrics.delivered("ring", given)
        if channel.flushed < head:
            self.wake(channel)
        elif channel.flushed < channel.last_seq:
            self.heard(channel)  # meanwhile

    async def _flush_live(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        if not channel.holds(channel.flushed):
            # More came than may wait for them: they catch up from the log, each at its own pace.
            for subscriber in list(channel.live):
                channel.part(subscriber)
            channel.flush(channel.last_seq)
            return
        beginning = channel.beginning
        frames = channel.frames(channel.flushed, self._config.slice_bytes)
        reached = channel.flushed + len(frames)
        data = b"".join(frames)
        framed = chunk(data)
        self._most = max(self._most, len(frames))
        plain: list[tuple[bytes, int]] | None = None
        # Whoever joins or leaves while others are being written to: a newcomer comes by way of `behind`.
        readers = list(channel.live)
        passed_over = 0
        for first in range(0, len(readers), _ROW):
            if first:
                await self._yield_when_due(loop)
                if channel.beginning != beginning:
                    return  # what it was is void
            for subscriber in write_to_each(readers[first : first + _ROW], framed):
                stream = subscriber.stream
                try:
                    if subscriber.gone:
                        passed_over += 1
                    elif stream.full:
                        passed_over += 1
                        channel.part(subscriber)
                    elif stream.numbered:
                        stream.write_raw(framed if stream.chunked else data)
                    else:
                        if plain is None:
                            plain = pieces(frames, channel.flushed)
                        for piece in plain:
                            subscriber.give(*piece)
                except Exception as error:
                    passed_over += 1
                    self._give_up(subscriber, error)
        committed_at = channel.flush(reached)
        channel.flushed_at = loop.time()
        given_to = len(readers) - passed_over
        self._metrics.delivered("live", given_to * len(frames))
        if committed_at is not None and given_to:
            if plain is None:
                self._metrics.lagged(time.monotonic() - committed_at)
            else:
                self._collected_since.append(committed_at)  # some of them are written to at the end of the turn
        if channel.ended and reached == channel.last_seq:
            for subscriber in list(channel.live):
                subscriber.stream.ended(subscriber)

    @staticmethod
    def _give_up(subscriber: Subscriber, error: Exception) -> None:
        """Nobody knows what its reader has: it comes back, and resumes. The others must get each event once."""
        log.error("write failed", conversation_id=subscriber.channel.conversation_id, exc_info=error)
        subscriber.stream.abort()

    def _advance(self, channel: Channel, subscriber: Subscriber, slices: Slices) -> None:
        """Gives a subscriber with a position of its own what it lacks, and lets it join the others when it is level."""
        if subscriber.ready_at is None and subscriber.position == channel.flushed:
            self._join_live(channel, subscriber)
            return
        if not channel.holds(subscriber.position):
            self._catch_up(subscriber)
            return
        if not subscriber.counted:
            subscriber.counted = True
            self._metrics.resumed("live" if subscriber.position == subscriber.ready_at else "ring")
        position, numbered = subscriber.position, subscriber.stream.numbered
        key = (position, subscriber.ready_at, numbered)
        if key not in slices:
            frames = channel.frames(position, self._config.slice_bytes, subscriber.ready_at)
            slices[key] = [(b"".join(frames), position + len(frames))] if numbered else pieces(frames, position)
        # With nothing to give it may still be ready.
        for piece in slices[key] or [(b"", position)]:
            subscriber.give(*piece)
        reached = subscriber.position
        if channel.ended and reached == channel.last_seq:
            subscriber.stream.ended(subscriber)
        elif reached > channel.last_seq:
            return  # goes on when the channel has heard of what it has
        elif reached == channel.flushed and subscriber.ready_at is None:
            self._join_live(channel, subscriber)
        elif not subscriber.stream.full:
            self.wake(channel)

    def _join_live(self, channel: Channel, subscriber: Subscriber) -> None:
        if channel.ended and channel.flushed == channel.last_seq:
            subscriber.stream.ended(subscriber)  # it was full when the others ended, or resumed after the last event
            return
        channel.settle(subscriber)

    async def _yield_when_due(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.time() >= self._turn_ends:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            self._turn_ends = loop.time() + self._config.turn
