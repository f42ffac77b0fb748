"""What goes past the transports, to sockets that are real."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from events.channel import Channel
from events.conversation_stream import ConversationStream
from events.owner import Owner
from events.socket_first import NO_SOCKET, write_to_each
from events.stream import Stream

_TIMEOUT = 10.0


class _Place:
    """A subscriber, as far as it is written to."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream


class _Keeper:
    epoch = "e"

    def __init__(self) -> None:
        self.lost_streams = 0

    def lost(self, stream: Stream) -> None:
        self.lost_streams += 1

    def filled(self, stream: Stream) -> None:
        pass

    def resumed(self, stream: Stream) -> None:
        pass


async def _connected(*, chunked: bool = True) -> tuple[Stream, socket.socket, _Keeper]:
    """A stream on a real connection, and the reader's side of it."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    keeper: Any = _Keeper()
    channel = Channel("default", "c", 1024, 1024)
    channel.begin(0, 0)
    stream = ConversationStream(keeper, Owner("", ("", "")), channel, 0, chunked=chunked)
    await loop.connect_accepted_socket(lambda: stream, ours)
    return stream, theirs, keeper


async def _read(reader: socket.socket, size: int) -> bytes:
    loop, found = asyncio.get_running_loop(), b""
    async with asyncio.timeout(_TIMEOUT):
        while len(found) < size:
            found += await loop.sock_recv(reader, 65536)
    return found


def _write(stream: Stream, data: bytes) -> bool:
    """Whether it went past the transport."""
    place: Any = _Place(stream)
    return not write_to_each([place], data)


async def test_a_stream_has_its_socket_once_its_transport_holds_nothing() -> None:
    stream, reader, _ = await _connected()
    assert not _write(stream, b"not yet")
    stream.write_raw(b"first")
    assert _write(stream, b"second")
    assert await _read(reader, 11) == b"firstsecond"
    reader.close()


async def test_what_a_socket_does_not_take_comes_behind_and_in_order() -> None:
    stream, reader, _ = await _connected()
    stream.write_raw(b"begin")
    big = bytes(range(256)) * 4096
    assert _write(stream, big)
    assert stream.socket == NO_SOCKET
    assert not _write(stream, b"never past it")
    # There is room in the socket again, before the loop has turned: what the transport holds goes first all the same.
    begun = reader.recv(65536)
    stream.write_raw(b"end")  # as the pump does with those that it is left with
    assert stream.socket == NO_SOCKET
    assert begun + await _read(reader, 5 + len(big) + 3 - len(begun)) == b"begin" + big + b"end"
    stream.write_raw(b"again")
    assert stream.socket != NO_SOCKET
    assert await _read(reader, 5) == b"again"
    reader.close()


async def test_a_response_without_chunks_has_none() -> None:
    stream, reader, _ = await _connected(chunked=False)
    stream.write_raw(b"plain")
    assert stream.socket == NO_SOCKET
    assert await _read(reader, 5) == b"plain"
    reader.close()


@pytest.mark.parametrize("meanwhile", [True, False])
async def test_a_reader_that_has_gone_is_noticed_and_its_number_is_not_written_to(meanwhile: bool) -> None:
    stream, reader, keeper = await _connected()
    stream.write_raw(b"first")
    reader.close()
    if meanwhile:
        _write(stream, b"into the void")  # no error of one reader reaches the others
    async with asyncio.timeout(_TIMEOUT):
        while not keeper.lost_streams:
            await asyncio.sleep(0.01)
    assert stream.socket == NO_SOCKET
    assert not _write(stream, b"more")
