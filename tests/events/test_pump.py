"""When the pump writes: at once, with what comes meanwhile, or, for more of a text, a little later."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from prometheus_client import CollectorRegistry

from events.channel import Channel
from events.config import StreamConfig
from events.conversation_stream import ConversationStream
from events.owner import Owner
from events.pump import Pump
from events.stream import Stream
from metrics.streams import StreamMetrics

_TIMEOUT = 10.0
_CREATED, _DELTA = "message.created", "message.delta"


class _Keeper:
    epoch = "e"

    def lost(self, stream: Stream) -> None:
        for subscriber in stream.subscribers:
            subscriber.channel.live.pop(subscriber, None)
            subscriber.channel.behind.pop(subscriber, None)

    def filled(self, stream: Stream) -> None:
        pass

    def resumed(self, stream: Stream) -> None:
        pass


class _Broken(ConversationStream):
    def write_raw(self, data: bytes) -> None:
        raise RuntimeError("broken")


class _Hall:
    """A pump at work on one channel, and the readers of it."""

    def __init__(self, pump: Pump) -> None:
        self.pump = pump
        self.channel = Channel("default", "c", 100_000, 100_000)
        self.channel.begin(0, 0)

    async def reader(
        self, made: type[ConversationStream] = ConversationStream
    ) -> tuple[ConversationStream, socket.socket]:
        """One that has all there is, and what it reads from."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        keeper: Any = _Keeper()
        stream = made(keeper, Owner("", ("", "")), self.channel, self.channel.flushed, chunked=False)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: stream, ours)
        self.channel.settle(stream.subscribers[0])
        return stream, theirs

    def say(self, kind: str, frame: bytes) -> None:
        if self.channel.hear(self.channel.last_seq + 1, kind, frame):
            self.pump.heard(self.channel)


@contextlib.asynccontextmanager
async def _pumping(**times: float) -> AsyncIterator[_Hall]:
    def catch_up(subscriber: object) -> None:
        raise AssertionError("the ring has it all")

    pump = Pump(StreamConfig(**{"gap": 0.0, **times}), StreamMetrics(CollectorRegistry()), catch_up)  # type: ignore[arg-type]
    task = asyncio.create_task(pump.run())
    try:
        yield _Hall(pump)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _read(reader: socket.socket) -> bytes:
    async with asyncio.timeout(_TIMEOUT):
        return await asyncio.get_running_loop().sock_recv(reader, 65536)


def _has_more(reader: socket.socket) -> bool:
    try:
        return bool(reader.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def _turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_first_delta_goes_at_once_and_more_of_it_waits_for_others() -> None:
    async with _pumping(delta_gap=60.0) as hall:
        _, reader = await hall.reader()
        hall.say(_DELTA, b"a")
        assert await _read(reader) == b"a"
        hall.say(_DELTA, b"b")
        hall.say(_DELTA, b"c")
        await _turns()
        assert not _has_more(reader)
        hall.say(_CREATED, b"!")  # it takes along what waits
        assert await _read(reader) == b"bc!"
        hall.say(_CREATED, b"?")  # and is not held up itself
        assert await _read(reader) == b"?"
        reader.close()


async def test_what_waits_is_given_when_its_time_has_come() -> None:
    async with _pumping(delta_gap=0.02) as hall:
        _, reader = await hall.reader()
        for text in (b"a", b"b", b"c"):
            hall.say(_DELTA, text)
            assert await _read(reader) == text
        reader.close()


async def test_after_few_events_the_next_go_at_once_and_after_many_they_wait_for_more() -> None:
    async with _pumping(busy_gap=60.0) as hall:
        _, reader = await hall.reader()
        for text in (b"a", b"b", b"c"):
            hall.say(_CREATED, text)
            assert await _read(reader) == text
        for _ in range(8):
            hall.say(_CREATED, b"d")
        assert await _read(reader) == b"d" * 8
        hall.say(_CREATED, b"e")
        await _turns()
        assert not _has_more(reader)
        reader.close()


async def test_a_reader_that_cannot_be_written_to_costs_the_others_nothing() -> None:
    async with _pumping() as hall:
        broken, lost = await hall.reader(_Broken)
        _, reader = await hall.reader()
        for text in (b"a", b"b"):
            hall.say(_CREATED, text)
            assert await _read(reader) == text  # once each
        assert broken.gone
        assert not _has_more(lost)
        lost.close()
        reader.close()
