"""One slow reader hurts nobody (P6): readers that take nothing, beside readers that take everything at once."""

import asyncio
import hashlib
import os
import signal
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from handlers.resources import HUB
from tests import proof
from tests.api import Client, new_conversation
from tests.response_pieces import Kind, ResponsePieces
from tests.server_process import ServerProcess
from tests.sse_reader import SseReader, StreamEnded

CONTENT = "x" * 4_000
RECEIVE_BUFFER = 4_096  # of a stalled reader; what its kernel takes in its stead is not what the server holds for it
SEND_TIMEOUT = 1.0
BOUND = proof.count(100, 400)  # seconds that nothing here takes

# What the server may hold for a reader that takes nothing: its transport is full at 64 KiB, and one slice of 64 KiB, or
# one page of the log, may have been written to it when it was just below that.
HELD_BYTES = 160 * 1024
# What the kernel may hold: 64 KiB that it cannot send, and one segment that it was given before that.
UNSENT_BYTES = 130 * 1024
# What a process takes and gives back as it likes, whoever reads.
NOISE_BYTES = 16 * 1024 * 1024
NOISE_MS = 20.0  # what a shared machine adds to a p99 now and then


@pytest.fixture
def environment() -> dict[str, str]:
    return {"SWARM_STREAM_SEND_TIMEOUT": str(SEND_TIMEOUT)}


class _Reader(asyncio.Protocol):
    """Reads one stream as fast as bytes come, and notes each event with the time at which it came.

    One that `stalls` takes nothing more after `ready`, until it is told to.
    """

    def __init__(self, path: str, *, stalls: bool) -> None:
        self.seqs: list[int] = []
        self.times: list[float] = []
        self.digest = hashlib.sha256()
        self.ready = asyncio.Event()
        self.received = 0
        self.lost = False
        self._path = path
        self._stalls = stalls
        self._pieces = ResponsePieces()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        now = time.perf_counter()
        for piece in self._pieces.feed(data):
            if piece.kind is Kind.CHUNK:
                assert piece.body.endswith(b"\n\n"), "whole frames"
                for frame in piece.body[:-2].split(b"\n\n"):
                    self._take(frame, now)

    def _take(self, frame: bytes, now: float) -> None:
        if frame.startswith(b"event: ready"):
            self.ready.set()
            if self._stalls:
                self.transport.pause_reading()
        elif frame.startswith(b"event: message."):
            self.seqs.append(int(frame[frame.rindex(b"\nid: ") + 5 : frame.rindex(b"@")]))
            self.times.append(now)
            self.digest.update(frame)
        else:
            assert frame.startswith((b"retry: ", b": ping")), frame

    def read_again(self) -> None:
        self.transport.resume_reading()


async def _connected(port: int, path: str, count: int, *, stalls: bool) -> list[_Reader]:
    """So many readers, all of them ready."""
    readers = []
    for _ in range(count):
        connection = socket.socket()
        connection.setblocking(False)
        if stalls:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", port))
        _, reader = await loop.create_connection(lambda: _Reader(path, stalls=stalls), sock=connection)
        readers.append(reader)
    async with asyncio.timeout(BOUND):
        await asyncio.gather(*(reader.ready.wait() for reader in readers))
    return readers


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass
class _Served:
    """A server process and a conversation in it, whose events are written one after the other: seq n at `sent[n]`."""

    server: ServerProcess
    session: aiohttp.ClientSession
    path: str
    sent: list[float]

    async def write(self, events: int) -> None:
        for _ in range(events):
            self.sent.append(time.perf_counter())
            body = {"role": "user", "content": f"{len(self.sent)} {CONTENT}"}
            async with self.session.post(f"{self.path}/messages", json=body) as answer:
                assert answer.status == 201, await answer.text()

    def delays(self, readers: Sequence[_Reader], after: int) -> list[float]:
        """From just before an event is posted until it is read, in milliseconds, of those after seq `after`."""
        return [
            (at - self.sent[seq - 1]) * 1_000
            for reader in readers
            for seq, at in zip(reader.seqs, reader.times, strict=True)
            if seq > after
        ]

    def resident(self) -> int:
        """The process's memory in bytes."""
        pages = int(Path(f"/proc/{self.server.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def unsent(self) -> list[int]:
        """What the kernel still has to send for each of the server's connections, in bytes (proc_net_tcp)."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return [
            int(row[4].partition(":")[0], 16)
            for row in rows
            if row[1].endswith(f":{self.server.port:04X}") and row[3] == "01"
        ]


@asynccontextmanager
async def _served(database_url: str) -> AsyncIterator[_Served]:
    server = ServerProcess(database_url, SWARM_STREAM_SEND_TIMEOUT="900", SWARM_LOG_LEVEL="WARNING")
    await server.start()
    try:
        async with aiohttp.ClientSession(server.origin) as session:
            async with session.post("/api/conversations", json={}) as answer:
                path = f"/api/conversations/{(await answer.json())['id']}"
            yield _Served(server, session, path, [])
    finally:
        code = await server.end(signal.SIGTERM)
    assert code == 0


def _p99(delays: list[float]) -> float:
    return statistics.quantiles(delays, n=100)[98]


def _told(delays: list[float]) -> str:
    return f"median {statistics.median(delays):.1f} ms, p99 {_p99(delays):.1f} ms"


@pytest.mark.proof
@pytest.mark.fault
@pytest.mark.timeout(1_200)
async def test_readers_that_take_nothing_cost_little_and_delay_nobody(database_url: str) -> None:
    each, events = proof.count(30, 200), proof.count(120, 250)
    async with _served(database_url) as served:
        stream = f"{served.path}/events?after=0"
        good = await _connected(served.server.port, stream, each, stalls=False)

        async def everything_came() -> None:
            await _until(lambda: all(len(reader.seqs) == len(served.sent) for reader in good))

        await served.write(events)  # so that what the process takes for itself is taken
        await everything_came()
        await served.write(events)
        await everything_came()
        without, before = served.delays(good, events), served.resident()

        stalled = await _connected(served.server.port, f"{served.path}/events", each, stalls=True)
        taken = [reader.received for reader in stalled]
        memory = []
        for _ in range(2):
            await served.write(events)
            await everything_came()
            memory.append(served.resident())
        beside = served.delays(good, events * 2)
        unsent = max(served.unsent())
        assert [reader.received for reader in stalled] == taken, "they take nothing"
        assert not any(reader.lost for reader in good + stalled)
        assert all(reader.seqs == list(range(1, len(served.sent) + 1)) for reader in good)

        begun = time.perf_counter()
        for reader in stalled:
            reader.read_again()
        missed = list(range(events * 2 + 1, events * 4 + 1))
        await _until(lambda: all(len(reader.seqs) >= len(missed) for reader in stalled))
        caught_up = time.perf_counter() - begun
        assert all(reader.seqs == missed for reader in stalled), "each seq once, in order"
        assert len({reader.digest.digest() for reader in stalled}) == 1
        [exact] = await _connected(served.server.port, f"{served.path}/events?after={events * 2}", 1, stalls=False)
        assert exact.seqs == missed
        assert exact.digest.digest() == stalled[0].digest.digest()
        for reader in [*good, *stalled, exact]:
            reader.transport.abort()
    database = database_url.partition(":")[0]
    proof.record("delivery to good readers", database, _told(without), f"{each} readers, {events} events of 4 KB")
    proof.record("the same beside stalled ones", database, _told(beside), f"{each} stalled, {events * 2} events")
    proof.record(
        "memory for stalled readers",
        database,
        f"{(memory[-1] - before) / each / 1024:.0f} KiB each",
        f"process {before / 2**20:.0f} MiB before, {memory[0] / 2**20:.0f} and {memory[1] / 2**20:.0f} MiB with {each},"
        f" the kernel up to {unsent / 1024:.0f} KiB each;"
        f" they caught up with {len(missed)} events each in {caught_up:.1f} s",
    )
    proof.within(_p99(beside), 2 * _p99(without) + NOISE_MS, "the good ones' p99")
    assert unsent <= UNSENT_BYTES
    assert memory[-1] - before <= each * HELD_BYTES + NOISE_BYTES
    assert memory[1] - memory[0] <= NOISE_BYTES, "it does not grow with what they miss"


async def test_a_reader_that_takes_nothing_is_cut_off_and_resumes_and_a_slow_one_is_not(client: Client) -> None:
    hub = client.app[HUB]
    conversation_id = await new_conversation(client)
    path = f"/api/conversations/{conversation_id}"
    assert client.port is not None
    # HTTP/1.0, so that it can read less than the server writes at once.
    slow = SseReader(client.host, client.port, f"{path}/events", version="1.0", receive_buffer=RECEIVE_BUFFER)
    stalled = SseReader(client.host, client.port, f"{path}/events", receive_buffer=RECEIVE_BUFFER)
    async with slow, stalled:
        for reader in (slow, stalled):
            await reader.until("ready")
        events = 100
        items = [{"role": "user", "content": CONTENT}] * events

        async def read_slowly() -> list[int]:
            seqs = []
            for _ in range(events):
                seqs.append((await slow.event()).json["seq"])
                await asyncio.sleep(SEND_TIMEOUT / 25)
            return seqs

        slowly = asyncio.create_task(read_slowly())
        assert (await client.post(f"{path}/messages", json=items)).status == 201
        begun = time.monotonic()
        await _until(lambda: hub.streams == 1)
        assert time.monotonic() - begun >= SEND_TIMEOUT * 0.9
        assert await slowly == list(range(1, events + 1))
        assert hub.streams == 1
        # What its kernel had taken for it is whole frames, and perhaps a part of one.
        seqs, last_id = [], ""
        with pytest.raises(StreamEnded) as ended:
            while True:
                frame = await stalled.event()
                seqs.append(frame.json["seq"])
                last_id = frame.id or ""
        assert not ended.value.clean
    assert len(seqs) < events
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with SseReader(client.host, client.port, f"{path}/events?after=0", headers) as again:
        seqs += [frame.json["seq"] for frame in (await again.until("ready"))[:-1]]
    assert seqs == list(range(1, events + 1))
