"""The proxy that real clients read through cuts where it says, and sees how the server wrote."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest

from tests.cutting_proxy import CuttingProxy, Ending, Place, PlannedCut, plan
from tests.tcp_proxy import Cut

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def frame(seq: int, event: str = "message.created", text: str = "x") -> bytes:
    return f'event: {event}\ndata: {{"seq":{seq},"text":"{text}"}}\nid: {seq}@e\n\n'.encode()


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


FIRST = b"retry: 1000\n\n" + frame(1)
SECOND = frame(2) + frame(3)
WHOLE = HEAD + chunk(FIRST) + chunk(SECOND) + LAST
BEFORE = HEAD + chunk(FIRST)


@asynccontextmanager
async def proxied(sent: bytes, *cuts: PlannedCut) -> AsyncIterator[CuttingProxy]:
    """In front of a server that sends the same to everybody, and ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.write_eof()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with CuttingProxy("127.0.0.1", server.sockets[0].getsockname()[1], cuts) as proxy:
        yield proxy
    server.close()


async def read(proxy: CuttingProxy) -> tuple[bytes, bool]:
    """What one client gets, and whether its connection was reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    got = b""
    try:
        async with asyncio.timeout(10):
            while data := await reader.read(65_536):
                got += data
    except ConnectionResetError:
        return got, True
    finally:
        writer.close()
    return got, False


async def test_without_cuts_every_byte_goes_through() -> None:
    async with proxied(WHOLE) as proxy:
        assert await read(proxy) == (WHOLE, False)
        assert proxy.seq == 3
        assert proxy.events == {1: frame(1), 2: frame(2), 3: frame(3)}
        assert proxy.faults == []


@pytest.mark.parametrize(
    ("place", "passed"),
    [
        (Place.HEAD, HEAD[:1]),
        (Place.ANYWHERE, BEFORE + chunk(SECOND)[:1]),
        (Place.INSIDE, BEFORE + chunk(SECOND)[: 4 + 1]),
        (Place.BEFORE_BLANK_LINE, BEFORE + chunk(SECOND)[: 4 + len(frame(2)) - 1]),
        (Place.AFTER, BEFORE + chunk(SECOND)[: 4 + len(frame(2))]),
    ],
)
async def test_a_connection_that_is_closed_has_passed_all_bytes_up_to_the_place(place: Place, passed: bytes) -> None:
    async with proxied(WHOLE, PlannedCut(2, place, Ending.BREAK, 0.0)) as proxy:
        assert await read(proxy) == (passed, False)
        assert not proxy.planned
        # The next one is whole.
        assert await read(proxy) == (WHOLE, False)


async def test_a_response_that_ends_early_is_good_http() -> None:
    async with proxied(WHOLE, PlannedCut(2, Place.BEFORE_BLANK_LINE, Ending.END, 0.0)) as proxy:
        assert await read(proxy) == (BEFORE + chunk(frame(2)[:-1]) + LAST, False)
        assert list(proxy.cut_events.values()) == [2]


async def test_a_reset_is_seen_as_one() -> None:
    async with proxied(WHOLE, PlannedCut(2, Place.AFTER, Ending.RESET, 0.0)) as proxy:
        assert (await read(proxy))[1]


def test_no_random_cut_falls_between_the_id_line_and_the_blank_line_of_who_is_spared() -> None:
    for place, byte in itertools.product((Place.ANYWHERE, Place.INSIDE), range(200)):
        proxy = CuttingProxy("127.0.0.1", 1, [PlannedCut(2, place, Ending.BREAK, byte / 200)])
        assert proxy.on_connection is not None
        passed = _passed(proxy.on_connection(), WHOLE)
        assert not any(passed.endswith(frame(seq)[:-1]) for seq in (1, 2, 3))


def _passed(hook: Callable[[bytes], object], sent: bytes) -> bytes:
    with pytest.raises(Cut) as cut:
        hook(sent)
    return cut.value.passed


@pytest.mark.parametrize(
    "body",
    [
        frame(1)[:-1],  # not ended
        frame(1)[:20],
        frame(1)[3:],
        frame(1).replace(b"\n", b"\r\n"),
        b"id: 1@e\n" + frame(1).replace(b"id: 1@e\n", b""),  # not last
        frame(1).replace(b"id: 1@e\n", b""),  # none
        frame(1, "reset"),  # one where there must be none
        frame(1) + frame(1, text="y"),  # not what it was before
    ],
)
async def test_what_the_server_should_not_write_is_noted(body: bytes) -> None:
    async with proxied(HEAD + chunk(body) + LAST) as proxy:
        await read(proxy)
        assert len(proxy.faults) == 1


async def test_a_tombstone_may_take_the_place_of_an_event() -> None:
    async with proxied(HEAD + chunk(frame(1) + frame(1, "message.deleted")) + LAST) as proxy:
        await read(proxy)
        assert proxy.faults == []


def test_a_plan_has_each_place_equally_often_and_is_repeated_by_its_seed() -> None:
    cuts = plan(Random(1), 100, 2_000)
    assert cuts == plan(Random(1), 100, 2_000)
    assert [sum(cut.place is place for cut in cuts) for place in Place] == [20] * 5
    assert [cut.seq for cut in cuts] == sorted(cut.seq for cut in cuts)
    assert {cut.ending for cut in cuts} == set(Ending)
    assert not any(cut.place is Place.HEAD and cut.ending is Ending.END for cut in cuts)


def test_a_plan_spares_what_it_is_told_to() -> None:
    cuts = plan(
        Random(1), 100, 2_000, spare={(Place.HEAD, Ending.BREAK), *((Place.AFTER, ending) for ending in Ending)}
    )
    assert {cut.place for cut in cuts} == set(Place) - {Place.AFTER}
    assert {cut.ending for cut in cuts if cut.place is Place.HEAD} == {Ending.RESET}
