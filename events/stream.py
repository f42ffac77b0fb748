"""A stream: one live response, and no more than that.

It is the connection's own protocol (the HTTP server has let go of it), so an idle stream costs no task, no timer and no
queue: a position in the ring of each channel that it follows, and the transport's buffer.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol, cast

from events.frame import LAST_CHUNK, chunk
from events.owner import Owner
from events.socket_first import NO_SOCKET, write_past
from metrics.streams import StreamKind

if TYPE_CHECKING:
    from events.subscriber import Subscriber

# How long the kernel keeps a connection whose other side acknowledges nothing. Not every system has it.
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)

# How much the kernel takes of what cannot be sent yet. Linux and macOS have it; the standard library names neither.
_NOTSENT_LOWAT = {"linux": 25, "darwin": 0x201}.get(sys.platform)


class Keeper(Protocol):
    """Who is told of what happens to a stream: the hub."""

    @property
    def epoch(self) -> str: ...

    def parting(self, reason: str) -> bytes: ...

    def lost(self, stream: Stream) -> None: ...

    def left(self, subscriber: Subscriber) -> None: ...

    def filled(self, stream: Stream) -> None: ...

    def resumed(self, stream: Stream) -> None: ...

    def collected(self, stream: Stream) -> None: ...

    def ending(self, transport: asyncio.Transport) -> None: ...


class Stream(ABC, asyncio.Protocol):
    """Writes to one reader, whose `subscribers` are its places in the conversations that it follows.

    While the transport is full (`paused`) nothing is written: the pump passes over it. `numbered` frames carry an id
    each; those of a stream that follows several conversations do not. `socket` is the descriptor to which bytes may go
    past the transport, `NO_SOCKET` while they may not: under TLS, in a response without chunks, while the transport
    holds something, and once the reader has gone.
    """

    __slots__ = (
        "_waiters",
        "bucket",
        "chunked",
        "keeper",
        "owner",
        "paused",
        "paused_since",
        "socket",
        "transport",
        "unsent",
    )

    numbered = True
    kind: StreamKind = "conversation"

    def __init__(self, keeper: Keeper, owner: Owner, *, chunked: bool) -> None:
        self.keeper = keeper
        self.owner = owner
        self.chunked = chunked
        self.transport: asyncio.Transport | None = None
        self.paused = False
        self.paused_since = 0.0
        self.unsent = 0
        self.bucket = 0
        self.socket = NO_SOCKET
        self._waiters: list[asyncio.Future[None]] | None = None

    # What follows conversations.

    @property
    @abstractmethod
    def subscribers(self) -> list[Subscriber]:
        """Its places in the conversations that it follows now."""

    @property
    def full(self) -> bool:
        """Whether it takes nothing for now."""
        return self.paused

    @abstractmethod
    def give(self, data: bytes) -> None:
        """Whole frames for the reader."""

    def flush(self) -> None:
        """Writes what was collected, for a stream that collects."""

    @abstractmethod
    def reached(self, subscriber: Subscriber) -> None:
        """The subscriber has been given everything up to its `ready_at`, which is its position."""

    @abstractmethod
    def ended(self, subscriber: Subscriber) -> None:
        """The subscriber was given its conversation's last event."""

    @abstractmethod
    def vanished(self, subscriber: Subscriber) -> None:
        """Its conversation is not there any more, and neither is its last event."""

    @abstractmethod
    def reset(self, subscriber: Subscriber, reason: str) -> None:
        """What the reader holds of the conversation is void; it goes on after the subscriber's position."""

    # The transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def prepare_socket(self, timeout: float, unsent: int) -> None:
        """Lets the kernel end the connection when the other side has acknowledged nothing for `timeout` seconds, and
        hold about `unsent` bytes at most that the other side does not take.

        Without the one a client that lost its network would be kept for a quarter of an hour (RFC 5482; tcp(7)).
        Without the other a stalled reader would cost the machine megabytes that no limit of ours sees, and be noticed
        only when those are full.
        """
        connection = None if self.transport is None else self.transport.get_extra_info("socket")
        if connection is None or connection.family == socket.AF_UNIX:
            return
        if _USER_TIMEOUT is not None:
            connection.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(timeout * 1000))
        if _NOTSENT_LOWAT is not None:
            connection.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, unsent)

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
        self.keeper.filled(self)

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
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    @property
    def gone(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    async def writable(self) -> None:
        """Waits until the stream takes more, or the reader has gone."""
        while self.full and not self.gone:
            if self._waiters is None:
                self._waiters = []
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def write(self, data: bytes) -> None:
        """Whole frames, in one piece, at once."""
        self.write_raw(chunk(data) if self.chunked else data)

    def write_raw(self, data: bytes) -> None:
        """Bytes as they go over the connection."""
        transport = self.transport
        if transport is None:
            return
        # What it holds goes first. Asked for here, so that whoever writes to many need not ask each of them.
        free = self.chunked and self.numbered and not transport.get_write_buffer_size() and not transport.is_closing()
        self.socket = _descriptor(transport) if free else NO_SOCKET
        rest = write_past(self.socket, data) if free else data
        if rest:
            self.write_behind(rest)

    def write_behind(self, data: bytes) -> None:
        """What the socket did not take: from now on all goes by the transport, until that holds nothing."""
        self.socket = NO_SOCKET
        if self.transport is not None:
            self.transport.write(data)

    def drain(self, reason: str) -> None:
        """Ends the response: the reader is to come back."""
        self.finish(self.keeper.parting(reason))

    def finish(self, data: bytes = b"") -> None:
        """Ends the response properly, after `data`. Nothing is written after it."""
        transport = self.transport
        if transport is None:
            return
        self.flush()
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
        if self.transport is None:
            return
        self.transport = None
        self.socket = NO_SOCKET  # before it is closed, and its number is given to another
        self._release()
        self.keeper.lost(self)


def _descriptor(transport: asyncio.Transport) -> int:
    connection = transport.get_extra_info("socket")
    if connection is None or transport.get_extra_info("sslcontext") is not None:
        return NO_SOCKET
    descriptor: int = connection.fileno()
    return descriptor
