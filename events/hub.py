"""The hub: every conversation that somebody watches in this process, and what happens in it.

A commit tells the hub (`publish`), and the hub the bus, by which the hubs of other processes hear of it (`heard`); the
pump writes what each subscriber lacks; what the hub missed it finds by comparing with the database. It delivers an
event only after the one before it, so a hole is filled, never skipped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

import structlog

from events.accesses import REASON, TOPIC, Accesses
from events.bus import Bus
from events.channel import Channel
from events.comparison import Comparison
from events.config import StreamConfig
from events.feed import Feeds
from events.frame import drain_frame, event_frame, read_frames, retry_frame
from events.head_reader import HeadReader
from events.holes import Holes
from events.multiplexed_stream import MultiplexedStream
from events.open_streams import OpenStreams
from events.owner import Owner
from events.pump import Pump
from events.replay import Replay
from events.stream import Stream
from events.subscriber import Subscriber
from metrics.streams import StreamMetrics
from storage.append import Append, Committed, fill
from storage.conversations import Conversations
from storage.database import Database
from storage.errors import NotFound, StorageError, StorageUnavailable
from storage.log import Log

log = structlog.get_logger(__name__)

Key = tuple[str, str]  # a conversation's tenant and id


class Hub:
    def __init__(self, database: Database, config: StreamConfig, bus: Bus, metrics: StreamMetrics) -> None:
        self.config = config
        self.bus = bus
        self._metrics = metrics
        self.channels: dict[Key, Channel] = {}
        self.feeds = Feeds(Conversations(database), config, self._feed_begins, self._feed_ends)
        self.draining = False
        self.epoch = ""  # of what the channels hold; "" until something was read
        self._database = database
        self._log = Log(database)
        self._head_reader = HeadReader(self._log)
        # Readers that catch up, and holes that are filled, leave about half of the pool to everybody else. Holes have
        # slots of their own: all live readers wait for one, and it must not queue up behind a crowd that comes back.
        fills = max(1, database.config.pool_size // 8)
        slots = asyncio.Semaphore(max(1, database.config.pool_size // 2 - fills))
        self._replay = Replay(self._log, config, metrics, self, slots, self._caught_up)
        self._comparison = Comparison(self, self._log, bus, config)
        self._pump = Pump(config, metrics, self._replay.begin)
        self.holes = Holes(self._log, config, metrics, self, asyncio.Semaphore(fills), self._pump.wake)
        self._streams = OpenStreams(config)
        self._tasks: list[asyncio.Task[None]] = []
        self._opening: dict[Key, asyncio.Task[None]] = {}
        self._switching: asyncio.Task[None] | None = None
        self.accesses = Accesses(self._streams, bus)

    @property
    def streams(self) -> int:
        return len(self._streams)

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._pump.run(), name="pump"),
            asyncio.create_task(self._streams.look_after(self._forget_idle_channels), name="ping wheel"),
            asyncio.create_task(self._comparison.run(), name="compare with the database"),
            asyncio.create_task(self.feeds.run(), name="feeds"),
        ]
        await self.bus.start(self)

    async def close(self) -> None:
        await self.bus.close()
        tasks = [*self._tasks, *self.holes.tasks, *self._opening.values(), *self._replay.tasks]
        if self._switching is not None:
            tasks.append(self._switching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def drain(self, reason: str) -> None:
        """Ends every stream: each reader learns that it should come back, and when."""
        self.draining = True
        for stream in list(self._streams):
            stream.drain(reason)

    # What happened.

    def publish(self, append: Append, committed: Committed) -> None:
        """What this process has committed. Makes each event's bytes once, and only when somebody may hear them."""
        tenant, conversation_id = append.tenant, append.conversation_id
        if not self.epoch:
            self._adopt(committed.epoch)
        self.touch(tenant, conversation_id)
        channel = self.channels.get((tenant, conversation_id))
        if channel is None and not self.bus.live:
            return
        if committed.epoch != self.epoch:
            # The channels begin anew, and find what this commit has written.
            self._switch()
            return
        committed_at = time.monotonic()
        frames: list[bytes] = []
        for offset, event in enumerate(append.events):
            number = committed.seq + offset
            payload = fill(event.payload, number, committed.position + event.rank)
            frame = event_frame(event.kind, conversation_id, number, payload, self.epoch)
            frames.append(frame)
            if channel is not None:
                self._hear(channel, number, event.kind, frame, committed_at)
        if self.bus.live:
            self.bus.publish(_topic(tenant, conversation_id), b"".join(frames))

    def touch(self, tenant: str, conversation_id: str) -> None:
        """This process has changed the conversation: whoever reads the tenant's feed is told, here and elsewhere."""
        self.feeds.touch(tenant, conversation_id)
        if self.bus.live:
            if not self.epoch and self._database.epoch:
                self._adopt(self._database.epoch)  # nobody listens where no epoch is named
            self.bus.publish(_topic(tenant), conversation_id.encode() + b" ")

    def revoked(self, ids: list[str]) -> None:
        """This process has revoked these credentials: streams that were opened by them end, here and elsewhere."""
        if not self.epoch and self._database.epoch:
            self._adopt(self._database.epoch)  # nobody listens where no epoch is named
        self.accesses.revoked(ids)

    def heard(self, topic: str, data: bytes, age: float) -> None:
        """What another process has committed, or revoked."""
        if topic == TOPIC:
            self.accesses.heard(data)
            return
        tenant, _, conversation_id = topic.rpartition("/")
        if not conversation_id:
            for touched in data.split():
                self.feeds.touch(tenant, touched.decode())
            if not data:
                self._comparison.ask_feeds()
            return
        channel = self.channels.get((tenant, conversation_id))
        if channel is None:
            return
        try:
            for seq, kind, frame in read_frames(data):
                self._hear(channel, seq, kind, frame, time.monotonic() - age)
        except ValueError:
            # A knock, or the words of another version: what it is about is in the database.
            self._comparison.ask(channel)

    def listening(self, topic: str) -> None:
        """Others are heard from now on: what they said before is in the database."""
        if topic == TOPIC:
            return  # credentials are looked at again soon, heard of or not
        tenant, _, conversation_id = topic.rpartition("/")
        if not conversation_id:
            self._comparison.ask_feeds()
        elif (channel := self.channels.get((tenant, conversation_id))) is not None:
            self._comparison.ask(channel)

    def _feed_begins(self, tenant: str) -> None:
        self.bus.subscribe([_topic(tenant)])

    def _feed_ends(self, tenant: str) -> None:
        self.bus.unsubscribe([_topic(tenant)])

    def _hear(self, channel: Channel, seq: int, kind: str, frame: bytes, committed_at: float | None) -> None:
        if channel.hear(seq, kind, frame, committed_at):
            self._pump.heard(channel)
        elif channel.early:
            self.holes.noticed(channel)

    def fill(self, channel: Channel) -> None:
        self.holes.fill(channel)

    def went_back(self, channel: Channel, head: int) -> None:
        """It has lost what was committed: a backup was restored, and its epoch is not changed yet."""
        log.error("the log went back", conversation_id=channel.conversation_id, was=channel.last_seq, head=head)
        self._begin_anew([channel], "ahead")

    # Which timeline it is.

    async def agrees(self, epoch: str) -> bool:
        """Whether what was read with this epoch belongs to what the channels hold.

        If not, the timeline has changed under this process, or what was read is older than that: in the first case
        every channel has begun anew when this returns.
        """
        if not self.epoch:
            self._adopt(epoch)
        if epoch == self.epoch:
            return True
        await asyncio.shield(self._switch())
        return False

    async def refresh_epoch(self) -> str:
        """The database's, asked anew."""
        return await self._database.refresh_epoch()

    def _adopt(self, epoch: str) -> None:
        """The epoch of all that the channels hold from now on, and of what is said and heard on the bus."""
        self.epoch = epoch
        self.bus.begin(epoch)
        self.bus.subscribe([TOPIC, *map(_topic, self.feeds.tenants)])

    def _switch(self) -> asyncio.Task[None]:
        if self._switching is None or self._switching.done():
            self._switching = asyncio.create_task(self._change_timeline(), name="change timeline")
            self._switching.add_done_callback(_retrieve)
        return self._switching

    async def _change_timeline(self) -> None:
        # Asked anew: whoever found another epoch may have read before the last change.
        epoch = await self._database.refresh_epoch()
        if epoch == self.epoch:
            return
        log.warning("the log has a new timeline", was=self.epoch, epoch=epoch)
        self._adopt(epoch)
        for channel in self.channels.values():
            channel.early.clear()
        self._begin_anew([channel for channel in self.channels.values() if channel.known], "epoch")
        self.feeds.renew()

    def _begin_anew(self, channels: Iterable[Channel], reason: str) -> None:
        """Every reader of these is told that what it holds is void, and goes on where the log stands now."""
        by_tenant: dict[str, list[Channel]] = {}
        for channel in channels:
            channel.forget()
            by_tenant.setdefault(channel.tenant, []).append(channel)
        for tenant, those in by_tenant.items():
            task = asyncio.create_task(self._reopen(tenant, those, reason), name="begin anew")
            self._opening |= {(tenant, channel.conversation_id): task for channel in those}

    async def _reopen(self, tenant: str, channels: list[Channel], reason: str) -> None:
        while True:
            try:
                await self._begin(tenant, channels)
                break
            except StorageError as error:
                log.warning("the new timeline waits for the database", error=str(error))
            except Exception:
                # Nothing else would ever let these channels begin.
                log.exception("the new timeline is not read yet")
            await asyncio.sleep(self.config.compare)
        for channel in channels:
            for subscriber in list(channel.behind):
                if channel.known:
                    self.count_reset(subscriber)
                    subscriber.rewind(channel.last_seq, reason)
                else:
                    subscriber.stream.vanished(subscriber)
            self._opened_or_not(channel)

    # Who listens.

    async def watch(self, tenant: str, conversation_ids: Sequence[str]) -> dict[str, Channel]:
        """The channels of those conversations that are there; each hears of everything after its `last_seq` from now.

        One query at most.
        """
        keys = [(tenant, conversation_id) for conversation_id in conversation_ids]
        fresh = [key for key in keys if key not in self.channels]
        if fresh:
            # In the table before their heads are read: what is committed in between is heard as early, not missed.
            for key in fresh:
                self.channels[key] = Channel(*key, self.config.ring_bytes, self.config.backlog_bytes)
                self.channels[key].idle_since = time.monotonic()
            opening = asyncio.create_task(
                self._open(tenant, [self.channels[key] for key in fresh]), name="open channels"
            )
            self._opening |= dict.fromkeys(fresh, opening)
        for task in {self._opening[key] for key in keys if key in self._opening}:
            await self._opened_by(task)
        found: dict[str, Channel] = {}
        for key in keys:
            channel = self.channels.get(key)
            if channel is not None and channel.known and not channel.ended:
                channel.idle_since = time.monotonic()  # not to be forgotten while the reader is on its way
                found[key[1]] = channel
        return found

    async def _opened_by(self, opening: asyncio.Task[None]) -> None:
        """Waits for channels that somebody opens. Raises `StorageUnavailable` when that takes too long: channels that
        begin anew are tried until the database is there, and their readers had better come back."""
        try:
            async with asyncio.timeout(self.config.opening):
                # Shielded: others may be waiting for the same one.
                await asyncio.shield(opening)
        except TimeoutError:
            raise StorageUnavailable("the conversation is not read yet") from None

    async def _open(self, tenant: str, channels: list[Channel]) -> None:
        try:
            await self._begin(tenant, channels)
        finally:
            # At once: whoever comes next must not wait for what has failed.
            for channel in channels:
                self._opened_or_not(channel)

    async def _begin(self, tenant: str, channels: list[Channel]) -> None:
        """Lets them begin where the log stands. Those whose conversation is not there stay unknown."""
        while True:
            heads = await self._log.heads(tenant, [channel.conversation_id for channel in channels])
            if await self.agrees(heads.epoch):
                break
        for channel in channels:
            head = heads.heads.get(channel.conversation_id)
            if head is None:
                continue
            channel.begin(head.floor, head.head)
            early, channel.early = channel.early, {}
            for seq in sorted(early):
                self._hear(channel, seq, *early[seq])
        # What was said between that look and when the bus listens is found by a comparison then (`listening`).
        self.bus.subscribe(_topic(tenant, channel.conversation_id) for channel in channels if channel.known)

    def _opened_or_not(self, channel: Channel) -> None:
        key = (channel.tenant, channel.conversation_id)
        self._opening.pop(key, None)
        if channel.known:
            self._pump.wake(channel)
        elif self.channels.get(key) is channel:
            del self.channels[key]

    async def join_feed(self, tenant: str, stream: MultiplexedStream) -> None:
        """The stream is told of all that changes in the tenant's lists after this has returned."""
        # Of a hub that knows no epoch yet, a change of it would not be noticed.
        if not self.epoch and self._database.epoch:
            self._adopt(self._database.epoch)
        await self.feeds.join(tenant, stream)

    async def head(self, channel: Channel) -> int:
        """The log's head as the database knows it, which may be ahead of what this process has heard.

        The channel learns its floor, too. When the timeline turns out to be another one, the channel has begun anew.
        Raises `NotFound`: the conversation may have been deleted by another process a moment ago.
        """
        while True:
            beginning = channel.beginning
            heads = await self._head_reader.read(channel.tenant, channel.conversation_id)
            if await self.agrees(heads.epoch):
                head = heads.heads.get(channel.conversation_id)
                if head is None:
                    raise NotFound("conversation")
                if channel.known and channel.beginning == beginning:
                    channel.raise_floor(head.floor)
                return head.head
            opening = self._opening.get((channel.tenant, channel.conversation_id))
            if opening is not None:
                await self._opened_by(opening)

    def parting(self, reason: str, wait: float = 0) -> bytes:
        """What a stream that ends says last: why, and when to come back, which is in `wait` seconds at the least."""
        # Where a limit is met: to come back soon would meet it again.
        return drain_frame(reason) + retry_frame(max(wait, self.config.retry * (5 if reason == "limit" else 1)))

    def crowded(self, owner: Owner) -> bool:
        """Whether one more stream of this one is too many."""
        return self._streams.crowded(owner)

    def attach(self, stream: Stream) -> None:
        """From now on the pump gives the stream all it lacks: from the ring, or from the log where that is too short.

        Its connection is there, and it stands at its places.
        """
        reason = None
        if self.draining:
            reason = "shutdown"
        elif self.crowded(stream.owner):
            reason = "limit"
        elif not self.accesses.good(stream.owner.access):
            reason = REASON
        elif not all(self._listens(subscriber.channel) for subscriber in stream.subscribers):
            reason = "forgotten"
        self._streams.add(stream)
        self._metrics.opened(stream.kind)
        stream.prepare_socket(self.config.send_timeout, self.config.slice_bytes)
        if reason is not None:
            stream.drain(reason)
            return
        for subscriber in stream.subscribers:
            channel = subscriber.channel
            channel.behind[subscriber] = None
            if channel.known and channel.beginning != subscriber.beginning:
                self.count_reset(subscriber)
                subscriber.rewind(channel.last_seq, "epoch")
            self._pump.wake(channel)

    def _listens(self, channel: Channel) -> bool:
        """Whether the channel hears of what happens, if need be from now on again.

        While its reader was on the way it may have been forgotten, and opened anew for another one; or its conversation
        was not in the new timeline, and nothing would ever let it begin.
        """
        key = (channel.tenant, channel.conversation_id)
        if channel.known and key not in self.channels:
            self.channels[key] = channel
            self.bus.subscribe([_topic(*key)])
        return self.channels.get(key) is channel

    def count_reset(self, subscriber: Subscriber) -> None:
        """Its reader is told that what it holds is void."""
        subscriber.counted = True
        self._metrics.resumed("reset")

    def lost(self, stream: Stream) -> None:
        self._streams.remove(stream)
        self._metrics.closed(stream.kind)
        for subscriber in stream.subscribers:
            self.left(subscriber)
        if isinstance(stream, MultiplexedStream):
            self.feeds.leave(stream)

    def left(self, subscriber: Subscriber) -> None:
        channel = subscriber.channel
        subscriber.left = True
        channel.live.pop(subscriber, None)
        channel.behind.pop(subscriber, None)
        if channel.empty:
            channel.idle_since = time.monotonic()

    def filled(self, stream: Stream) -> None:
        self._streams.filled(stream)

    def resumed(self, stream: Stream) -> None:
        self._streams.emptied(stream)
        for subscriber in stream.subscribers:
            self._pump.wake(subscriber.channel)
        if isinstance(stream, MultiplexedStream):
            stream.make_up()

    def collected(self, stream: Stream) -> None:
        self._pump.collected(stream)

    def ending(self, transport: asyncio.Transport) -> None:
        # Nobody looks after it any more; a reader that does not even take the end must not keep it for ever.
        asyncio.get_running_loop().call_later(self.config.send_timeout, transport.abort)

    def _caught_up(self, subscriber: Subscriber) -> None:
        self._pump.wake(subscriber.channel)

    def _forget_idle_channels(self) -> None:
        long_ago = time.monotonic() - self.config.linger
        forgotten = [
            key
            for key, channel in self.channels.items()
            if channel.empty and channel.known and not channel.filling and channel.idle_since < long_ago
        ]
        for key in forgotten:
            del self.channels[key]
        if forgotten:
            self.bus.unsubscribe(_topic(*key) for key in forgotten)


def _topic(tenant: str, conversation_id: str = "") -> str:
    """What the bus calls a conversation, or a tenant's feed. An id has no slash in it; a tenant's name may."""
    return f"{tenant}/{conversation_id}"


def _retrieve(task: asyncio.Task[None]) -> None:
    """Whoever waits for the task has its error; where nobody does, the next comparison tries again."""
    if not task.cancelled():
        task.exception()
