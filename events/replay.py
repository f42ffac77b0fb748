"""Catching up from the database: for readers that resume from before the ring, or fell off it.

Each reads at its own pace: a page is fetched when the transport has taken the one before, and no connection is held in
between. Above the log's floor it reads events. Below it there are none any more: it reads the state that has changed
since, until one snapshot has returned all that was left, and goes on with the events after that snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from events.config import StreamConfig
from events.frame import PIECE_BYTES, event_frame, frame_parts, pieces, split_frames, unnumbered
from events.snapshots import snapshot
from events.subscriber import Subscriber
from metrics.streams import Source, StreamMetrics
from storage.errors import NotFound, StorageError
from storage.log import Log
from storage.log_frames import FramesPage
from storage.records import StatePage

log = structlog.get_logger(__name__)

_PAUSE = 0.25  # seconds between attempts while the database is away

# State pages grow up to so many times what a page is, once all is read that was there at the first one: what streams
# moves ahead of the reader with each delta, and one that is slower than the writers would never have read the last.
_PACE = 8  # pages of events, for a reader that takes all at once, are at most so many times as large
_GROWTH = 64


class Timeline(Protocol):
    """The epoch that the hub's channels are of, and whether what was read is of it."""

    @property
    def epoch(self) -> str: ...

    async def agrees(self, epoch: str) -> bool: ...


class Replay:
    """`slots` bounds how many pages are read at once, whoever reads them."""

    def __init__(
        self,
        events: Log,
        config: StreamConfig,
        metrics: StreamMetrics,
        timeline: Timeline,
        slots: asyncio.Semaphore,
        done: Callable[[Subscriber], None],
    ) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._log = events
        self._config = config
        self._metrics = metrics
        self._timeline = timeline
        self._slots = slots
        self._done = done

    def begin(self, subscriber: Subscriber) -> None:
        """Starts to catch up; `done` is called once the ring holds what is still lacking."""
        subscriber.catching_up = True
        task = asyncio.create_task(self._run(subscriber), name="catch up")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _run(self, subscriber: Subscriber) -> None:
        channel, stream = subscriber.channel, subscriber.stream
        beginning = subscriber.beginning  # of which its position is
        deleted = False
        state_after: int | None = None  # how far the state has been read, while it is being read
        state_head: int | None = None  # the log's head at its first page
        growth = 1
        pace = 1
        room = 0  # about how many events fit on a page: the database adds up the sizes of all that it is asked for
        try:
            while not subscriber.gone and (state_after is not None or not channel.holds(subscriber.position)):
                # Who takes all at once is given more at once: each page costs a query.
                pace = 1 if stream.full else min(pace * 2, _PACE)
                await stream.writable()
                if channel.beginning != beginning:
                    break  # the hub has told the reader where it goes on
                if state_after is None and subscriber.position < channel.floor and not deleted:
                    state_after, state_head, growth = subscriber.position, None, 1
                elif state_after is not None and state_head is not None and state_after >= state_head:
                    growth = min(growth * 2, _GROWTH)
                try:
                    async with self._slots:
                        if stream.full:
                            continue  # its other places have filled it meanwhile: each would add a page to its buffer
                        heard, epoch = channel.last_seq, self._timeline.epoch
                        page = await self._read(subscriber, state_after, growth, pace, room)
                    same = await self._timeline.agrees(page.epoch)
                except NotFound:
                    if channel.beginning != beginning:
                        continue  # of another timeline, in which it may be there
                    stream.vanished(subscriber)  # deleted, and already gone from the database
                    return
                except StorageError as error:
                    log.warning("catching up waits for the database", error=str(error))
                    await asyncio.sleep(_PAUSE)
                    continue
                if not same or page.epoch != epoch or channel.beginning != beginning:
                    continue  # it is of another timeline, or its frames are named after another
                if page.head < heard:
                    # A backup was restored, and its epoch is not changed yet: the hub's comparison finds it, too, and
                    # resets the reader. Until then there is nothing to give it.
                    await asyncio.sleep(_PAUSE)
                    continue
                channel.raise_floor(page.floor)
                deleted = page.deleted
                if isinstance(page, FramesPage):
                    if deleted or subscriber.position >= page.floor:
                        self._count(subscriber, "events", page.count)
                        room = 2 * page.count // pace + 16
                        self._write_events(subscriber, page)
                else:
                    state_head = page.head if state_head is None else state_head
                    self._count(subscriber, "state", len(page.items))
                    state_after = None if deleted else self._write_state(subscriber, page)
        except Exception:
            # The reader resumes where it is; what stopped it is in the log.
            log.exception("catching up failed", conversation_id=channel.conversation_id)
            stream.drain("error")
        finally:
            subscriber.catching_up = False
        self._done(subscriber)

    async def _read(
        self, subscriber: Subscriber, state_after: int | None, growth: int, pace: int, room: int
    ) -> FramesPage | StatePage:
        channel, limit, budget = subscriber.channel, self._config.page_events, self._config.page_chars
        if state_after is not None:
            return await self._log.state(
                channel.tenant, channel.conversation_id, state_after, limit=limit * growth, budget=budget * growth
            )
        limit = min(limit, room or limit) * pace
        until = subscriber.ready_at
        if until is not None and until > subscriber.position:
            limit = min(limit, until - subscriber.position)  # `ready` belongs between two pages
        return await self._log.frames(
            channel.tenant,
            channel.conversation_id,
            subscriber.position,
            frame_parts(channel.conversation_id, self._timeline.epoch),
            limit=limit,
            budget=budget * pace,
        )

    def _count(self, subscriber: Subscriber, source: Source, events: int) -> None:
        if not subscriber.counted:
            subscriber.counted = True
            self._metrics.resumed(source)
        self._metrics.delivered(source, events)

    def _write_events(self, subscriber: Subscriber, page: FramesPage) -> None:
        """One page, with `ready` where it belongs."""
        conversation_id, position = subscriber.channel.conversation_id, subscriber.position
        if page.deleted and position < page.floor:
            # What it lacks is gone: of the events that are left it could make nothing, but for the conversation's end,
            # which comes on a page of its own.
            subscriber.position = page.head - 1
            return
        if not page.count:
            raise AssertionError(f"the log of {conversation_id} ends before {subscriber.channel.base}")
        reached = page.last
        if page.first != position + 1 or reached != position + page.count:
            raise AssertionError(f"the log of {conversation_id} has a hole after {position}")
        if subscriber.ready_at is not None and position >= subscriber.ready_at:
            subscriber.give(b"", position)
        if subscriber.stream.numbered:
            subscriber.give(page.data, reached)
        else:
            for piece in pieces(split_frames(page.data), position):
                subscriber.give(*piece)
        if page.deleted and reached >= page.head:
            subscriber.stream.ended(subscriber)

    def _write_state(self, subscriber: Subscriber, page: StatePage) -> int | None:
        """One page of state; returns how far it goes, or None when nothing is left.

        A reader can resume from an item's seq only below the floor, where it would be given state again: above it the
        events after that seq would lack what an item that is still to come has been through before.
        """
        channel, epoch = subscriber.channel, self._timeline.epoch
        numbered = subscriber.stream.numbered
        if subscriber.ready_at is not None:
            subscriber.ready_at = page.head  # what is written by then
        if not page.complete and not page.items:
            raise AssertionError(f"the state of {channel.conversation_id} has an end that is not its last page")
        data: list[bytes] = []
        size, position = 0, subscriber.position
        for item, following in zip(page.items, [*page.items[1:], None], strict=True):
            kind, payload = snapshot(item.record)
            frame = event_frame(kind, channel.conversation_id, item.seq, payload, epoch)
            # What one append has touched together has one seq: it is passed when the last of it is.
            passed = item.seq < page.floor and (following is None or following.seq != item.seq)
            if passed:
                position = item.seq
            data.append(frame if numbered and passed else unnumbered([frame]))
            size += len(frame)
            if not numbered and size >= PIECE_BYTES:
                subscriber.give(b"".join(data), position)
                data, size = [], 0
        subscriber.give(b"".join(data), page.head if page.complete else position)
        return None if page.complete else page.items[-1].seq
