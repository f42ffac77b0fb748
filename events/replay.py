"""Catching up from the log: for readers that resume from before the ring, or fell off it.

Each reads at its own pace: a page is fetched when the transport has taken the one before, and no connection is held in
between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from events.config import StreamConfig
from events.frame import drain_frame, event_frame, ready_frame, retry_frame
from events.subscriber import Subscriber
from storage.errors import NotFound, StorageError
from storage.log import Log
from storage.records import LogPage

log = structlog.get_logger(__name__)

_PAUSE = 0.25  # seconds between attempts while the database is away


class Replay:
    def __init__(
        self,
        events: Log,
        config: StreamConfig,
        epoch: Callable[[], str],
        done: Callable[[Subscriber], None],
    ) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._log = events
        self._config = config
        self._epoch = epoch
        self._done = done
        # Readers that catch up must leave connections to everybody else.
        self._slots = asyncio.Semaphore(config.replays)

    def begin(self, subscriber: Subscriber) -> None:
        """Starts to catch up; `done` is called once the ring holds what is still lacking."""
        subscriber.catching_up = True
        task = asyncio.create_task(self._run(subscriber), name="catch up")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _run(self, subscriber: Subscriber) -> None:
        channel = subscriber.channel
        try:
            while not subscriber.gone and not channel.holds(subscriber.position):
                await subscriber.writable()
                try:
                    async with self._slots:
                        page = await self._log.page(
                            channel.tenant,
                            channel.conversation_id,
                            subscriber.position,
                            limit=self._config.page_events,
                            budget=self._config.page_chars,
                        )
                except NotFound:
                    # Deleted, and already gone from the database.
                    subscriber.finish(drain_frame("gone") + retry_frame())
                    return
                except StorageError as error:
                    log.warning("catching up waits for the database", error=str(error))
                    await asyncio.sleep(_PAUSE)
                    continue
                self._write(subscriber, page)
        except Exception:
            # The reader resumes where it is; what stopped it is in the log.
            log.exception("catching up failed", conversation_id=channel.conversation_id)
            subscriber.finish(drain_frame("error") + retry_frame())
        finally:
            subscriber.catching_up = False
        self._done(subscriber)

    def _write(self, subscriber: Subscriber, page: LogPage) -> None:
        """One page as one piece, with `ready` where it belongs."""
        epoch, conversation_id = self._epoch(), subscriber.channel.conversation_id
        frames: list[bytes] = []
        position = subscriber.position
        if page.deleted and position < page.floor:
            position = page.floor  # what it lacks is being purged: the end of the conversation is left
        elif not page.events:
            raise AssertionError(f"the log of {conversation_id} ends before {subscriber.channel.base}")
        for event in page.events:
            if event.seq != position + 1:
                raise AssertionError(f"the log of {conversation_id} has a hole after {position}")
            frames += self._ready(subscriber, position)
            frames.append(event_frame(event.kind, conversation_id, event.seq, event.payload, epoch))
            position = event.seq
        frames += self._ready(subscriber, position)
        subscriber.position = position
        if frames:
            subscriber.write(b"".join(frames))
        if page.deleted and position >= page.head:
            subscriber.finish()

    def _ready(self, subscriber: Subscriber, position: int) -> list[bytes]:
        """`ready`, if it belongs between `position` and what comes after it."""
        ready_at = subscriber.ready_at
        if ready_at is None or position < ready_at:
            return []
        subscriber.ready_at = None
        return [ready_frame(ready_at, self._epoch())]
