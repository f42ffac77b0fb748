"""A subscriber: one live response, and no more than that.

It is the connection's own protocol (the HTTP server has let go of it), so an idle stream costs no task, no timer and no
queue: a position in its channel's ring, and the transport's buffer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from events.frame import LAST_CHUNK, chunk

if TYPE_CHECKING:
    from events.channel import Channel


class Keeper(Protocol):
    """Who is told of what happens to a subscriber: the hub."""

    def lost(self, subscriber: Subscriber) -> None: ...

    def resumed(self, subscriber: Subscriber) -> None: ...

    def ending(self, transport: asyncio.Transport) -> None: ...


class Subscriber(asyncio.Protocol):
    """Writes to one reader. `position` is the seq of the last event that it was given.

    While the transport is full (`paused`) nothing is written: the pump passes over it. `ready_at` is the seq up to
    which it must be given everything before `ready`, None once it was.
    """

    __slots__ = (
        "_waiter",
        "bucket",
        "catching_up",
        "channel",
        "chunked",
        "keeper",
        "paused",
        "paused_since",
        "position",
        "ready_at",
        "transport",
        "unsent",
    )

    def __init__(self, keeper: Keeper, channel: Channel, position: int, ready_at: int, *, chunked: bool) -> None:
        self.keeper = keeper
        self.channel = channel
        self.position = position
        self.ready_at: int | None = ready_at
        self.chunked = chunked
        self.transport: asyncio.Transport | None = None
        self.paused = False
        self.paused_since = 0.0
        self.unsent = 0
        self.catching_up = False
        self.bucket = 0
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    def data_received(self, data: bytes) -> None:
        """A reader of a stream has nothing to say; what it says is not kept."""

    def eof_received(self) -> bool:
        return False  # a reader that ends its side has gone: the transport closes

    def pause_writing(self) -> None:
        self.paused = True
        self.paused_since = asyncio.get_running_loop().time()
        self.unsent = self._buffered()

    def stalled(self, now: float) -> float:
        """For how long the full transport has taken nothing, as far as a look now and then can tell."""
        buffered = self._buffered()
        if buffered != self.unsent:
            self.unsent, self.paused_since = buffered, now
        return now - self.paused_since

    def _buffered(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        self.paused = False
        self._release()
        self.keeper.resumed(self)

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None

    @property
    def gone(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    async def writable(self) -> None:
        """Waits until the transport takes more, or the reader has gone."""
        if self.paused and not self.gone:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def write(self, data: bytes) -> None:
        """Whole frames, in one piece."""
        if self.transport is not None:
            self.transport.write(chunk(data) if self.chunked else data)

    def finish(self, data: bytes = b"") -> None:
        """Ends the response properly, after `data`. Nothing is written after it."""
        transport = self.transport
        if transport is None:
            return
        if data:
            self.write(data)
        if self.chunked:
            transport.write(LAST_CHUNK)
        transport.close()  # once its buffer is empty
        if transport.get_write_buffer_size():
            self.keeper.ending(transport)
        self._leave()

    def abort(self) -> None:
        """Ends the connection, and throws away what it still holds."""
        transport = self.transport
        if transport is not None:
            transport.abort()
            self._leave()

    def _leave(self) -> None:
        self.transport = None
        self._release()
        self.keeper.lost(self)
