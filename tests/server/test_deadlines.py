"""Requests that drip: each is ended by a deadline, and nobody else is."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from handlers.problem import MEDIA_TYPE
from server.connection import Connection
from tests.api import Client, new_conversation
from tests.sse_reader import SseReader

_WAIT = 20.0  # seconds for anything that is to come
_TIMEOUT = 0.5
_PACE = 0.02  # seconds between two drops: many of them fall within the deadline

HEAD = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = (
    b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000\r\n\r\n"
)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One of the two is enough: what drips has not come to a database yet."""
    return sqlite_url


@pytest.fixture
def environment() -> dict[str, str]:
    return {"SWARM_HEAD_TIMEOUT": str(_TIMEOUT), "SWARM_BODY_TIMEOUT": str(_TIMEOUT)}


@dataclass
class Answer:
    """What the server said, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == MEDIA_TYPE
        document: dict[str, Any] = msgspec.json.decode(self.body)
        return document


class Peer:
    """One connection, byte by byte. Every wait is bounded."""

    def __init__(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._source, self._sink = source, sink
        self.began = asyncio.get_running_loop().time()

    @property
    def age(self) -> float:
        return asyncio.get_running_loop().time() - self.began

    async def send(self, data: bytes) -> None:
        self._sink.write(data)
        await self._sink.drain()

    @contextlib.contextmanager
    def dripping(self, drop: bytes) -> Iterator[None]:
        """Sends a drop again and again, until the server closes or the block ends."""

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await self.send(drop)
                    await asyncio.sleep(_PACE)

        task = asyncio.create_task(drip())
        try:
            yield
        finally:
            task.cancel()

    async def answer(self) -> Answer:
        async with asyncio.timeout(_WAIT):
            lines = (await self._source.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = await self._source.readexactly(int(headers["content-length"]))
        return Answer(int(lines[0].split()[1]), headers, body)

    async def rest(self) -> bytes:
        """What is still said until the connection is closed, however that is done."""
        said = b""
        async with asyncio.timeout(_WAIT):
            with contextlib.suppress(ConnectionError):
                while data := await self._source.read(65_536):
                    said += data
        return said


@asynccontextmanager
async def connected(client: Client) -> AsyncIterator[Peer]:
    assert client.port is not None
    source, sink = await asyncio.open_connection(client.host, client.port)
    try:
        yield Peer(source, sink)
    finally:
        sink.transport.abort()


def _is_timeout(answer: Answer) -> bool:
    closes = answer.headers.get("connection", "close") == "close"  # what the parser refuses is answered as HTTP/1.0 is
    return closes and answer.status == 408 and bool(answer.problem["type"] == "/problems/request-timeout")


@pytest.mark.parametrize(
    "start", [b"G", b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-", HEAD[:-1]], ids=["line", "field", "end"]
)
async def test_a_head_that_stops_is_answered_and_ended(client: Client, start: bytes) -> None:
    async with connected(client) as peer:
        await peer.send(start)
        assert _is_timeout(await peer.answer())
        assert await peer.rest() == b""
        assert peer.age >= _TIMEOUT * 0.9


async def test_a_head_that_drips_is_ended_as_early_as_one_that_stops(client: Client) -> None:
    async with connected(client) as peer:
        await peer.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        with peer.dripping(b"a"):
            assert _is_timeout(await peer.answer())
            assert await peer.rest() == b""


async def test_a_connection_that_says_nothing_is_closed_without_a_word(client: Client) -> None:
    async with connected(client) as peer:
        assert await peer.rest() == b""
        assert _TIMEOUT * 0.9 <= peer.age < _WAIT


async def test_empty_lines_are_no_head(client: Client) -> None:
    async with connected(client) as peer:
        with peer.dripping(b"\r\n"):
            assert await peer.rest() == b""


@pytest.mark.parametrize("whole", [1, 2])
async def test_a_later_head_has_the_same_time_from_its_first_byte(client: Client, whole: int) -> None:
    async with connected(client) as peer:
        for _ in range(whole):
            await peer.send(HEAD)
            assert (await peer.answer()).status == 200
            await asyncio.sleep(_TIMEOUT * 1.5)  # that a connection is idle between requests is no fault
        began = peer.age
        await peer.send(HEAD[:20])
        assert _is_timeout(await peer.answer())
        assert await peer.rest() == b""
        assert peer.age - began >= _TIMEOUT * 0.9


@pytest.mark.parametrize("cut", [1, 20, len(HEAD) - 1])
async def test_what_comes_behind_a_whole_head_counts_too(client: Client, cut: int) -> None:
    async with connected(client) as peer:
        await peer.send(HEAD + HEAD[:cut])
        assert (await peer.answer()).status == 200
        assert _is_timeout(await peer.answer())
        assert await peer.rest() == b""


async def test_an_idle_connection_is_kept_however_its_request_was_cut(client: Client) -> None:
    """Into single bytes, into two requests at once, with a body, with empty lines behind."""
    body = b"{}"
    post = POST.replace(b"1000", b"%d" % len(body))
    async with connected(client) as peer:
        for byte in HEAD:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await peer.answer()).status == 200
        for pieces, statuses in (
            ((HEAD + HEAD,), (200, 200)),
            ((post + body,), (201,)),
            ((post, body[:1], body[1:]), (201,)),
            ((post + body + HEAD,), (201, 200)),
            ((HEAD + b"\r\n",), (200,)),
            ((b"\r\n" + HEAD, b"\r\n"), (200,)),
            ((HEAD[:10], HEAD[10:-2], HEAD[-2:]), (200,)),
        ):
            for piece in pieces:
                await peer.send(piece)
                await asyncio.sleep(0.01)
            for status in statuses:
                assert (await peer.answer()).status == status
            await asyncio.sleep(_TIMEOUT * 1.5)
        await peer.send(HEAD)
        assert (await peer.answer()).status == 200


@pytest.mark.parametrize("media_type", [b"application/json", b"application/x-ndjson"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_that_drips_is_answered_and_ended(client: Client, media_type: bytes, framing: str) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages".encode()
    head = POST.replace(b"/api/conversations", path).replace(b"application/json", media_type)
    drop = b" "
    if framing == "chunked":
        head, drop = head.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked"), b"1\r\n \r\n"
    async with connected(client) as peer:
        await peer.send(head)
        with peer.dripping(drop):
            answer = await peer.answer()
            assert _is_timeout(answer)
            assert answer.problem["instance"] == path.decode()
            assert await peer.rest() == b""


async def test_the_lines_of_an_import_that_came_before_the_one_that_does_not_are_stored(client: Client) -> None:
    conversation_id = await new_conversation(client)
    path = f"/api/conversations/{conversation_id}/messages"
    line = b'{"role":"user","content":"x"}\n'
    async with connected(client) as peer:
        await peer.send(
            POST.replace(b"/api/conversations", path.encode())
            .replace(b"application/json", b"application/x-ndjson")
            .replace(b"1000", b"100000")
        )
        # Longer than the deadline altogether: an import has none, its lines have.
        for _ in range(8):
            await peer.send(b"\n" + line)
            await asyncio.sleep(_TIMEOUT / 4)
        await peer.send(line[:-5])
        with peer.dripping(b" "):
            answer = await peer.answer()
        assert _is_timeout(answer)
        assert (answer.problem["line"], answer.problem["accepted"]) == (17, 8)
        assert await peer.rest() == b""
    window = await (await client.get(path)).json()
    assert window["total"] == 8


async def test_blank_lines_do_not_keep_an_import_alive(client: Client) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages".encode()
    async with connected(client) as peer:
        head = POST.replace(b"/api/conversations", path).replace(b"application/json", b"application/x-ndjson")
        await peer.send(head)
        with peer.dripping(b"\n"):
            answer = await peer.answer()
        assert _is_timeout(answer)
        assert answer.problem["accepted"] == 0


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"/api/conversations", b"/nowhere", 404),
        (b"POST", b"PATCH", 405),
        (b"1000", b"100000000", 413),
        (b"application/json", b"text/plain", 415),
        (b"POST /api/conversations", b"GET /health/live", 200),
    ],
)
async def test_a_body_that_nobody_reads_is_not_waited_for(client: Client, old: bytes, new: bytes, status: int) -> None:
    async with connected(client) as peer:
        await peer.send(POST.replace(old, new))
        with peer.dripping(b" "):
            assert (await peer.answer()).status == status
            assert await peer.rest() == b""


async def test_others_notice_nothing_of_those_that_drip(client: Client) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for start, drop in ((HEAD[:-2] + b"X: ", b"a"), (POST, b" "), (HEAD[:5], b"a")) * 10:
            peer = await stack.enter_async_context(connected(client))
            await peer.send(start)
            stack.enter_context(peer.dripping(drop))
        loop = asyncio.get_running_loop()
        until = loop.time() + _TIMEOUT * 3
        while loop.time() < until:
            async with asyncio.timeout(5):
                assert (await client.post("/api/conversations", json={})).status == 201


async def test_a_stream_outlives_the_deadline_and_holds_no_timer(client: Client) -> None:
    path = f"/api/conversations/{await new_conversation(client)}"
    assert client.port is not None
    async with SseReader(client.host, client.port, f"{path}/events") as reader:
        assert (await reader.event()).event == "ready"
        await asyncio.sleep(_TIMEOUT * 2)
        posted = await client.post(f"{path}/messages", json={"role": "user", "content": "still there"})
        assert posted.status == 201
        assert (await reader.event()).json["message"]["content"] == "still there"
        # The handed-over connection is gone with its timers; that of the client's own requests is kept alive.
        gc.collect()
        alive = [thing for thing in gc.get_objects() if isinstance(thing, Connection) and thing.connected]
        assert len(alive) == 1
        assert alive[0]._head_timer is None


async def test_a_stream_that_is_opened_late_within_its_deadline_lives_on(client: Client) -> None:
    path = f"/api/conversations/{await new_conversation(client)}"
    async with connected(client) as peer:
        for piece in (b"GET ", f"{path}/events HTTP/1.1\r\n".encode(), b"Host: localhost\r\n\r", b"\n"):
            await peer.send(piece)
            await asyncio.sleep(_TIMEOUT / 6)
        async with asyncio.timeout(_WAIT):
            said = await peer._source.readuntil(b"event: ready")
        assert b"200 OK" in said
        await asyncio.sleep(_TIMEOUT * 2)
        await client.post(f"{path}/messages", json={"role": "user", "content": "x"})
        async with asyncio.timeout(_WAIT):
            await peer._source.readuntil(b"message.created")
