"""The feed of a tenant's lists: what changes in them, as whole states, without seqs and ids.

A reader reads its lists after `ready`; from then on every state that it lacks comes by the feed, and each state says
all that those before it said. So it does not matter how often a conversation changes between two looks at it, and a
reader that could not be told is told to read its lists again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from events.config import StreamConfig
from events.frame import feed_frame
from events.multiplexed_stream import MultiplexedStream
from events.snapshots import feed_deletion, feed_state
from storage.conversations import Conversations
from storage.errors import StorageError
from storage.records import now

log = structlog.get_logger(__name__)

# Other processes' changes are looked for this far back. A row's time is its process's clock's, and it is written before
# the row can be seen.
_SLACK = timedelta(seconds=30)
_LOOK = 1_000  # rows of one look; a tenant that changes more between two looks has its readers read their lists again
# Of so many rows those that are missing are the oldest. As far back as this before the last look none may be.
_SKEW = timedelta(seconds=5)
_STATES = 500  # of one query


class _Feed:
    """The feed of one tenant. `seen` are the seqs of recently touched conversations that its readers know of, `looked`
    is when that was last compared with the database."""

    def __init__(self) -> None:
        self.streams: dict[MultiplexedStream, None] = {}
        self.touched: dict[str, None] = {}
        self.seen: dict[str, int] = {}
        self.looked: datetime | None = None


class Feeds:
    """`begins` and `ends` are told when a tenant's feed has its first reader, and when its last one has left."""

    def __init__(
        self,
        conversations: Conversations,
        config: StreamConfig,
        begins: Callable[[str], None] = lambda tenant: None,
        ends: Callable[[str], None] = lambda tenant: None,
    ) -> None:
        self._conversations = conversations
        self._config = config
        self._feeds: dict[str, _Feed] = {}
        self._begins = begins
        self._ends = ends
        self._wake = asyncio.Event()

    @property
    def tenants(self) -> list[str]:
        """Whose feeds are read."""
        return list(self._feeds)

    def __bool__(self) -> bool:
        """Whether anybody reads one."""
        return bool(self._feeds)

    async def join(self, tenant: str, stream: MultiplexedStream) -> None:
        """Adds a reader, which is told of everything that is committed after this has returned."""
        feed = self._feeds.get(tenant)
        if feed is None:
            feed = self._feeds[tenant] = _Feed()
            self._begins(tenant)
        feed.streams[stream] = None
        if feed.looked is None:
            try:
                await self._look([tenant])
            except BaseException:
                self.leave(stream)
                raise

    def leave(self, stream: MultiplexedStream) -> None:
        """Takes a reader out, if it is one."""
        for tenant, feed in list(self._feeds.items()):
            if stream in feed.streams:
                del feed.streams[stream]
                if not feed.streams:
                    del self._feeds[tenant]
                    self._ends(tenant)

    def touch(self, tenant: str, conversation_id: str) -> None:
        """Something of this process has changed the conversation."""
        feed = self._feeds.get(tenant)
        if feed is not None:
            feed.touched[conversation_id] = None
            self._wake.set()

    def renew(self) -> None:
        """The lists may be others altogether: all readers are to read them again."""
        for feed in self._feeds.values():
            feed.seen.clear()
            for stream in feed.streams:
                stream.renew()

    async def compare(self) -> None:
        """Looks for what other processes have changed."""
        await self._look(list(self._feeds))

    async def _look(self, tenants: list[str]) -> None:
        began = now()
        # From the last look on, however long ago: the database may have been out of this process's reach alone.
        feeds = [feed for tenant in tenants if (feed := self._feeds.get(tenant)) is not None]
        last = min([began, *(feed.looked for feed in feeds if feed.looked is not None)])
        rows = await self._conversations.touched(tenants, last - _SLACK, _LOOK)
        missed = len(rows) >= _LOOK and rows[-1].at > last - _SKEW
        recent: dict[str, dict[str, int]] = {tenant: {} for tenant in tenants}
        for row in rows:
            seq = -1 if row.deleted else row.last_seq
            recent[row.tenant][row.id] = seq
            feed = self._feeds.get(row.tenant)
            if feed is not None and feed.looked is not None and feed.seen.get(row.id) != seq:
                feed.touched[row.id] = None
                self._wake.set()
        for tenant in tenants:
            feed = self._feeds.get(tenant)
            if feed is not None:
                if missed and feed.looked is not None:
                    for stream in feed.streams:
                        stream.renew()
                feed.seen = recent[tenant]
                feed.looked = began

    async def run(self) -> None:
        """Tells the readers of what was touched, again and again: at once, and then together what came in a while."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for tenant, feed in list(self._feeds.items()):
                try:
                    await self._tell(tenant, feed)
                except StorageError as error:
                    log.warning("the feed waits for the database", error=str(error))
                    self._wake.set()
                except Exception:
                    log.exception("the feed failed", tenant=tenant)
            await asyncio.sleep(self._config.feed)

    async def _tell(self, tenant: str, feed: _Feed) -> None:
        # What is touched while this reads is told after the next pause.
        touched, feed.touched = list(feed.touched), {}
        while touched:
            ids = touched[:_STATES]
            try:
                states, deleted = await self._conversations.states(tenant, ids)
            except BaseException:
                feed.touched |= dict.fromkeys(touched)
                raise
            del touched[:_STATES]
            frames = [feed_frame(*feed_state(state)) for state in states]
            frames += [feed_frame(*feed_deletion(gone)) for gone in deleted]
            feed.seen |= {state.id: int(state.as_of) for state in states} | dict.fromkeys(deleted, -1)
            if frames:
                for stream in list(feed.streams):
                    stream.tell(b"".join(frames))
