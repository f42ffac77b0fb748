"""The hub: every conversation that somebody watches in this process, and what happens in it.

A commit tells the hub (`publish`); the pump writes what each subscriber lacks; what the hub missed it finds by
comparing with the database. It delivers an event only after the one before it, so a hole is filled, never skipped.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from events.channel import Channel
from events.config import StreamConfig
from events.frame import PING, drain_frame, event_frame, retry_frame
from events.pump import Pump
from events.replay import Replay
from events.subscriber import Subscriber
from storage.append import Append, fill
from storage.database import Database
from storage.errors import NotFound, StorageError
from storage.log import Log

log = structlog.get_logger(__name__)


class Hub:
    def __init__(self, database: Database, config: StreamConfig) -> None:
        self.config = config
        self.channels: dict[str, Channel] = {}
        self.draining = False
        self._database = database
        self._log = Log(database)
        self._replay = Replay(self._log, config, self._epoch, self._caught_up)
        self._pump = Pump(config, self._epoch, self._replay.begin)
        self._buckets: list[set[Subscriber]] = [set() for _ in range(config.ping)]
        self._opened = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._fills: set[asyncio.Task[None]] = set()
        self._opening: dict[str, asyncio.Task[None]] = {}

    @property
    def streams(self) -> int:
        return sum(map(len, self._buckets))

    @property
    def epoch(self) -> str:
        return self._database.epoch

    def _epoch(self) -> str:
        return self._database.epoch

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._pump.run(), name="pump"),
            asyncio.create_task(self._wheel(), name="ping wheel"),
            asyncio.create_task(self._compare(), name="compare with the database"),
        ]

    async def close(self) -> None:
        tasks = [*self._tasks, *self._fills, *self._opening.values(), *self._replay.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def drain(self, reason: str) -> None:
        """Ends every stream: each reader learns that it should come back, and when."""
        self.draining = True
        for subscriber in [subscriber for bucket in self._buckets for subscriber in bucket]:
            subscriber.finish(drain_frame(reason) + retry_frame())

    # What happened.

    def publish(self, append: Append, seq: int, position: int) -> None:
        """What this process has committed. Makes each event's bytes once, and only when somebody watches."""
        channel = self.channels.get(append.conversation_id)
        if channel is None:
            return
        epoch = self.epoch
        for offset, event in enumerate(append.events):
            number = seq + offset
            payload = fill(event.payload, number, position + event.rank)
            self._hear(
                channel,
                number,
                event.kind,
                event_frame(event.kind, channel.conversation_id, number, payload, epoch),
            )

    def _hear(self, channel: Channel, seq: int, kind: str, frame: bytes) -> None:
        if channel.hear(seq, kind, frame):
            self._pump.wake(channel)
        elif channel.early and channel.known and not channel.filling:
            self._fill(channel, self.config.early)

    def _fill(self, channel: Channel, delay: float = 0.0) -> None:
        channel.filling = True
        task = asyncio.create_task(self._fill_hole(channel, delay), name="fill")
        self._fills.add(task)
        task.add_done_callback(self._fills.discard)

    async def _fill_hole(self, channel: Channel, delay: float) -> None:
        """Reads from the log what the channel has not heard, up to the log's head."""
        try:
            if delay:
                await asyncio.sleep(delay)
            while True:
                if channel.early and min(channel.early) <= channel.last_seq + 1:
                    break  # what was missing has come by itself
                page = await self._log.page(
                    channel.tenant,
                    channel.conversation_id,
                    channel.last_seq,
                    limit=self.config.page_events,
                    budget=self.config.page_chars,
                )
                purged = channel.last_seq < page.floor
                if purged:
                    channel.skip(page.floor)
                for event in page.events:
                    frame = event_frame(event.kind, channel.conversation_id, event.seq, event.payload, self.epoch)
                    if channel.hear(event.seq, event.kind, frame):
                        self._pump.wake(channel)
                if channel.last_seq >= page.head or not (page.events or purged):
                    break
        except StorageError as error:
            log.warning("hole not filled yet", conversation_id=channel.conversation_id, error=str(error))
        finally:
            channel.filling = False

    async def _compare(self) -> None:
        """Finds what no commit of this process has told: one query for all watched conversations."""
        while True:
            await asyncio.sleep(self.config.compare)
            known = [
                (channel.tenant, channel.conversation_id, channel.last_seq)
                for channel in self.channels.values()
                if channel.known and not channel.empty
            ]
            if not known:
                continue
            try:
                for conversation_id, head in await self._log.moved(known):
                    channel = self.channels.get(conversation_id)
                    if channel is not None and head > channel.last_seq and not channel.filling:
                        self._fill(channel)
            except StorageError as error:
                log.warning("not compared with the database", error=str(error))
            except Exception:
                log.exception("not compared with the database")

    # Who listens.

    async def watch(self, tenant: str, conversation_id: str) -> Channel:
        """The conversation's channel, which hears of everything after its `last_seq` from now on. Raises `NotFound`."""
        channel = self.channels.get(conversation_id)
        if channel is None:
            # In the table before its head is read: what is committed in between is heard as early, not missed.
            channel = self.channels[conversation_id] = Channel(
                tenant, conversation_id, self.config.ring_bytes, self.config.backlog_bytes
            )
            channel.idle_since = time.monotonic()
        if not channel.known:
            opening = self._opening.get(conversation_id)
            if opening is None:
                opening = asyncio.create_task(self._open(channel), name="open channel")
                self._opening[conversation_id] = opening
            # Shielded: others may be waiting for the same one.
            await asyncio.shield(opening)
        if channel.ended or channel.tenant != tenant:
            raise NotFound("conversation")
        channel.idle_since = time.monotonic()  # not to be forgotten while the reader is on its way
        return channel

    async def _open(self, channel: Channel) -> None:
        try:
            page = await self._log.page(channel.tenant, channel.conversation_id, 0, limit=0, budget=0)
            if page.deleted:
                raise NotFound("conversation")
        except BaseException:
            self.channels.pop(channel.conversation_id, None)
            raise
        finally:
            # At once: whoever comes next must not wait for what has failed.
            self._opening.pop(channel.conversation_id, None)
        channel.begin(page.head)
        early, channel.early = channel.early, {}
        for seq in sorted(early):
            self._hear(channel, seq, *early[seq])

    async def head(self, channel: Channel) -> int:
        """The log's head as the database knows it, which may be ahead of what this process has heard."""
        page = await self._log.page(channel.tenant, channel.conversation_id, 0, limit=0, budget=0)
        return page.head

    def attach(self, subscriber: Subscriber) -> None:
        """From now on the pump gives the subscriber all it lacks.

        From the ring, or from the log where the ring is too short.
        """
        channel = subscriber.channel
        # Forgotten while its reader was on the way, it goes on where it was: comparing finds what it has missed.
        if self.draining or self.channels.setdefault(channel.conversation_id, channel) is not channel:
            subscriber.finish(drain_frame("shutdown" if self.draining else "forgotten") + retry_frame())
            return
        subscriber.bucket = self._opened % len(self._buckets)
        self._opened += 1
        self._buckets[subscriber.bucket].add(subscriber)
        channel.behind[subscriber] = None
        self._pump.wake(channel)

    def lost(self, subscriber: Subscriber) -> None:
        channel = subscriber.channel
        channel.live.pop(subscriber, None)
        channel.behind.pop(subscriber, None)
        self._buckets[subscriber.bucket].discard(subscriber)
        if channel.empty:
            channel.idle_since = time.monotonic()

    def resumed(self, subscriber: Subscriber) -> None:
        self._pump.wake(subscriber.channel)

    def ending(self, transport: asyncio.Transport) -> None:
        # Nobody looks after it any more; a reader that does not even take the end must not keep it for ever.
        asyncio.get_running_loop().call_later(self.config.send_timeout, transport.abort)

    def _caught_up(self, subscriber: Subscriber) -> None:
        self._pump.wake(subscriber.channel)

    async def _wheel(self) -> None:
        """The one timer of all streams: each is pinged in its second, and aborted if it takes nothing for too long."""
        loop = asyncio.get_running_loop()
        start, tick = loop.time(), 0
        while True:
            tick += 1
            await asyncio.sleep(max(0.0, start + tick - loop.time()))
            self._forget_idle_channels()
            for subscriber in list(self._buckets[tick % len(self._buckets)]):
                if not subscriber.paused:
                    subscriber.write(PING)
                elif subscriber.stalled(loop.time()) > self.config.send_timeout:
                    subscriber.abort()

    def _forget_idle_channels(self) -> None:
        long_ago = time.monotonic() - self.config.linger
        for conversation_id, channel in list(self.channels.items()):
            if channel.empty and channel.known and not channel.filling and channel.idle_since < long_ago:
                del self.channels[conversation_id]
