"""Ends messages whose writers have died: nobody is left with a message that streams for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog
from msgspec import Struct

from events.streamed_messages import StreamedMessages
from storage.errors import QueueFull, StorageError
from storage.recurring import Recurring
from storage.streaming import StreamingMessage

log = structlog.get_logger(__name__)

_MOST = 15.0  # seconds between two looks, however long a message may stand still
_PER_LIFE = 5  # looks while a message stands still for as long as it may


class Streaming(Protocol):
    """Who knows which messages stream now."""

    async def all(self) -> list[StreamingMessage]: ...


class _Standing(Struct, frozen=True):
    last_seq: int
    since: float


class IdleSweeper(Recurring):
    """Looks now and then whether streaming messages have moved since it last looked.

    One that has stood still for `idle` seconds by this process's own clock becomes `failed`, its text kept. No two
    clocks are compared, and nothing is believed of the time before this process began. Any number of processes may
    sweep: the log lets one of them end a message, and none if a delta comes first.
    """

    name = "idle sweeper"

    def __init__(
        self, streaming: Streaming, streamed: StreamedMessages, idle: float, clock: Callable[[], float] | None = None
    ) -> None:
        self._streaming = streaming
        self._streamed = streamed
        self._idle = idle
        self._clock = clock or asyncio.get_running_loop().time
        self._standing: dict[tuple[str, str], _Standing] = {}

    def pause(self) -> float:
        return min(self._idle / _PER_LIFE, _MOST)

    async def turn(self) -> None:
        try:
            await self.sweep()
        except StorageError:
            # Their writers wait for the database, too: how long they have stood still says nothing of them.
            self._standing.clear()
            raise

    async def sweep(self) -> None:
        """One look. Raises `StorageError`."""
        known, self._standing = self._standing, {}
        streaming = await self._streaming.all()
        now = self._clock()
        overdue: list[StreamingMessage] = []
        for message in streaming:
            key = (message.tenant, message.message_id)
            standing = known.get(key)
            if standing is None or standing.last_seq != message.last_seq:
                standing = _Standing(message.last_seq, now)
            elif now - standing.since >= self._idle:
                overdue.append(message)
            self._standing[key] = standing
        stuck: set[str] = set()
        for message in overdue:
            if message.conversation_id in stuck:
                continue
            try:
                ended = await self._streamed.fail_idle(message.tenant, message.message_id, message.last_seq)
            except QueueFull as error:
                # Its conversation may be locked for long: the others must not stream for as long as that. The next
                # look tries again.
                stuck.add(message.conversation_id)
                log.warning("an idle message could not be ended", message_id=message.message_id, error=str(error))
                continue
            if ended:
                log.info("an idle message has failed", message_id=message.message_id, tenant=message.tenant)
