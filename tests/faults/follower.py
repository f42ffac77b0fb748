"""Readers that check every event of what they follow, by the hundreds."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable

_REFUSED = 0.1  # seconds before a reader that finds nobody tries again
_CONNECT = 5.0


class Follower:
    """One reader of one conversation from its beginning, as an `EventSource` is one: cut, it waits as long as it was
    told, and comes back with its last id. What is wrong is in `faults`: an event missing, repeated or out of order, a
    reset.

    It speaks HTTP/1.0, so that the stream comes as it is. One that is going to stall has a small `receive_buffer`, in
    bytes: the kernel's own would take in megabytes for it.
    """

    def __init__(
        self, port: int, conversation_id: str, *, timed: bool = False, receive_buffer: int | None = None
    ) -> None:
        self.port = port
        self.seq = 0  # of the last event it has
        self.faults: list[str] = []
        self.connections = 0
        self.ready = False  # on its present connection
        self.refusals = 0
        self.pings = 0
        self.resumed: list[float] = []  # for each loss of its connection, the seconds until it was ready again
        self.times: list[float] | None = [] if timed else None  # when each event came
        self.ended_by_drain = 0
        self._target = f"/api/conversations/{conversation_id}/events"
        self._last_id = ""
        self._retry = 0.0
        self._receive_buffer = receive_buffer
        self._lost_at: float | None = None
        self._connection: _Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            self._connection.transport.abort()

    def cut(self) -> None:
        """Loses its connection."""
        assert self._connection is not None
        self._connection.transport.abort()

    def stall(self) -> None:
        """Takes nothing more, until `go_on`."""
        assert self._connection is not None
        self._connection.transport.pause_reading()

    def go_on(self) -> None:
        assert self._connection is not None
        self._connection.transport.resume_reading()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.ready = False
            connection = socket.socket()
            connection.setblocking(False)
            if self._receive_buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
            try:
                async with asyncio.timeout(_CONNECT):
                    await loop.sock_connect(connection, ("127.0.0.1", self.port))
                    _, self._connection = await loop.create_connection(lambda: _Connection(self), sock=connection)
            except (OSError, TimeoutError):
                connection.close()
                self.refusals += 1
                await asyncio.sleep(_REFUSED)
                continue
            self.connections += 1
            after = f"Last-Event-ID: {self._last_id}\r\n" if self._last_id else ""
            target = self._target if self._last_id else f"{self._target}?after=0"
            self._connection.transport.write(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n{after}\r\n".encode())
            await self._connection.over
            self._lost_at = self._lost_at or time.perf_counter()
            self.ready = False
            await asyncio.sleep(self._retry or _REFUSED)

    def take(self, frame: bytes) -> None:
        """One frame, without the blank line behind it."""
        if frame.startswith((b"event: message.", b"event: conversation.")):
            seq = int(frame[frame.rindex(b"\nid: ") + 5 : frame.rindex(b"@")])
            if seq != self.seq + 1:
                self.faults.append(f"{seq} after {self.seq}")
            self.seq = seq
            if self.times is not None:
                self.times.append(time.perf_counter())
        elif frame.startswith(b"event: ready"):
            self.ready = True
            if self._lost_at is not None:
                self.resumed.append(time.perf_counter() - self._lost_at)
                self._lost_at = None
        elif frame.startswith(b"retry: "):
            self._retry = int(frame[7:]) / 1_000
            return
        elif frame.startswith(b"event: drain"):
            self.ended_by_drain += 1
            return
        elif frame.startswith(b": "):
            self.pings += 1
            return
        else:
            self.faults.append(frame.decode()[:200])
            return
        self._last_id = frame[frame.rindex(b"\nid: ") + 5 :].decode()

    def refuse(self, head: bytes) -> None:
        """It was answered with something that is no stream. 503 is what a proxy says whose servers are away."""
        if head[9:12] not in {b"502", b"503", b"504"}:
            self.faults.append(head.decode(errors="replace")[:200])


class _Connection(asyncio.Protocol):
    """One response, taken apart into frames."""

    def __init__(self, follower: Follower) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._follower = follower
        self._head = b""
        self._in_body = False
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        # What did not come whole is thrown away, as a browser does.
        if not self.over.done():
            self.over.set_result(None)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._in_body = True
            if b" 200 " not in head[:16]:
                self._follower.refuse(head)
                self.transport.abort()
                return
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for frame in frames:
            self._follower.take(frame)


async def follow(
    port: int, conversation_id: str, count: int, *, timed: bool = False, receive_buffer: int | None = None
) -> list[Follower]:
    """So many readers, all of them ready."""
    followers = [Follower(port, conversation_id, timed=timed, receive_buffer=receive_buffer) for _ in range(count)]
    for start in range(0, count, 100):
        for follower in followers[start : start + 100]:
            follower.start()
        await until(lambda: all(follower.ready for follower in followers[: start + 100]), "ready")  # noqa: B023
    return followers


async def caught_up(followers: Iterable[Follower], seq: int) -> None:
    """Returns when each has every event up to there; fails where one has another than the next."""
    followers = list(followers)
    await until(lambda: all(follower.seq >= seq for follower in followers), f"event {seq}")
    faults = [fault for follower in followers for fault in follower.faults]
    assert not faults, faults[:10]
    assert {follower.seq for follower in followers} == {seq}


async def stop_all(followers: Iterable[Follower]) -> None:
    await asyncio.gather(*(follower.stop() for follower in followers))


async def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> float:
    """Waits for it, and returns how long that took, in seconds."""
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {seconds:.0f} s in vain: {what}") from None
    return time.perf_counter() - begun
