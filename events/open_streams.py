"""All open streams of a process: who has how many, and the one timer that looks after all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import chain

import structlog

from events.config import StreamConfig
from events.frame import PING
from events.owner import Owner
from events.stream import Stream
from events.tally import Tally

log = structlog.get_logger(__name__)


class OpenStreams:
    """An idle stream costs no timer: each has its second in which it is pinged."""

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._buckets: list[set[Stream]] = [set() for _ in range(config.ping)]
        self._full: set[Stream] = set()
        self._opened = 0
        self.by_address = Tally[str](config.streams_per_address)
        self.by_principal = Tally[tuple[str, str]](config.streams_per_principal)

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def __iter__(self) -> Iterator[Stream]:
        return chain.from_iterable(self._buckets)

    def crowded(self, owner: Owner) -> bool:
        """Whether one more stream of this one is too many: for the process, for its address, or for its principal."""
        return (
            len(self) >= self._config.streams
            or self.by_address.full(owner.address)
            or self.by_principal.full(owner.principal)
        )

    def add(self, stream: Stream) -> None:
        self._opened += 1
        stream.bucket = self._opened % len(self._buckets)
        self._buckets[stream.bucket].add(stream)
        self.by_address.add(stream.owner.address)
        self.by_principal.add(stream.owner.principal)

    def remove(self, stream: Stream) -> None:
        self._buckets[stream.bucket].discard(stream)
        self._full.discard(stream)
        self.by_address.take(stream.owner.address)
        self.by_principal.take(stream.owner.principal)

    def filled(self, stream: Stream) -> None:
        """It takes nothing for now."""
        self._full.add(stream)

    def emptied(self, stream: Stream) -> None:
        self._full.discard(stream)

    async def look_after(self, each_second: Callable[[], None]) -> None:
        """The timer: each stream is pinged in its second, and aborted if it takes nothing for too long."""
        loop = asyncio.get_running_loop()
        start, tick = loop.time(), 0
        while True:
            tick += 1
            await asyncio.sleep(max(0.0, start + tick - loop.time()))
            try:
                each_second()
                for stream in list(self._full):
                    if stream.stalled(loop.time()) > self._config.send_timeout:
                        stream.abort()
                for stream in list(self._buckets[tick % len(self._buckets)]):
                    if not stream.paused:
                        stream.write(PING)
            except Exception:
                log.exception("a turn of the ping wheel failed")  # the next one comes all the same
