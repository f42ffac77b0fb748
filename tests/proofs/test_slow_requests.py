"""Requests that drip hurt nobody: their connections end by a deadline, and others are answered as if they were not."""

import asyncio
import itertools
import signal
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import aiohttp
import pytest

from tests import proof
from tests.server_process import ServerProcess

EACH = proof.count(50, 500)  # of slow heads, and of slow bodies
DEADLINE = proof.count(3, 10)  # seconds from the beginning of a head, and of a body
PACE = 0.5  # seconds between two drops of one of them
TURNS = 25  # they do not drip all at once
AT_ONCE = 5  # of them begin
OTHERS = 4  # who send one request after the other
REST = 0.01  # seconds between two of these: they keep the server busy, but for what is measured here
BOUND = 60.0  # seconds that nothing here takes
NOISE_MS = 5.0  # what a shared machine adds to a p99 now and then
LATE = 2.0  # seconds after its deadline in which a connection must have ended

_HEAD = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


def _body(path: str, media_type: str) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: 100000\r\n\r\n"
    ).encode()


class _Slow(asyncio.Protocol):
    """Begins a request, sends a drop when it is told to, and notes what it is answered and when it was closed."""

    def __init__(self, start: bytes, drop: bytes) -> None:
        self._start, self._drop = start, drop
        self.said = b""
        self.begun = self.ended = 0.0
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.begun = time.perf_counter()
        transport.write(self._start)

    def data_received(self, data: bytes) -> None:
        self.said += data

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = time.perf_counter()
        self.closed.set()

    def drip(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self._drop)

    @property
    def status(self) -> int:
        return int(self.said.split(b" ", 2)[1])


@dataclass
class _Others:
    """Clients that post and read while `going`; how long each request took, in milliseconds."""

    session: aiohttp.ClientSession
    path: str
    going: bool = True
    times: list[float] = field(default_factory=list)

    async def send(self) -> None:
        while self.going:
            for method, status in (("POST", 201), ("GET", 200)):
                body = {"role": "user", "content": "not slow"} if method == "POST" else None
                begun = time.perf_counter()
                async with self.session.request(method, self.path, json=body) as answer:
                    assert answer.status == status, await answer.text()
                    await answer.read()
                self.times.append((time.perf_counter() - begun) * 1_000)
                await asyncio.sleep(REST)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.times, n=100)[98]

    @property
    def told(self) -> str:
        return f"median {statistics.median(self.times):.1f} ms, p99 {self.p99:.1f} ms"


@asynccontextmanager
async def _others(session: aiohttp.ClientSession, path: str) -> AsyncIterator[_Others]:
    others = _Others(session, path)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(OTHERS):
            tasks.create_task(others.send())
        try:
            yield others
        finally:
            others.going = False


async def _begun(port: int, path: str) -> list[_Slow]:
    """All the slow ones, a few at a time: how fast connections are taken in is not what is measured."""
    starts = [(_HEAD, b"a")] * EACH
    bodies = itertools.cycle([(_body(path, "application/json"), b" "), (_body(path, "application/x-ndjson"), b"\n")])
    starts += itertools.islice(bodies, EACH)
    loop = asyncio.get_running_loop()
    slow: list[_Slow] = []
    for first in range(0, len(starts), AT_ONCE):
        made = await asyncio.gather(
            *(
                loop.create_connection(partial(_Slow, start, drop), "127.0.0.1", port)
                for start, drop in starts[first : first + AT_ONCE]
            )
        )
        slow += [protocol for _, protocol in made]
        await asyncio.sleep(REST)
    return slow


@pytest.mark.proof
@pytest.mark.timeout(300)
async def test_slow_heads_and_bodies_end_by_their_deadline_and_delay_nobody(database_url: str) -> None:
    server = ServerProcess(
        database_url,
        SWARM_LOG_LEVEL="WARNING",
        SWARM_HEAD_TIMEOUT=str(DEADLINE),
        SWARM_BODY_TIMEOUT=str(DEADLINE),
    )
    await server.start()
    try:
        async with aiohttp.ClientSession(server.origin) as session, asyncio.timeout(BOUND):
            async with session.post("/api/conversations", json={}) as answer:
                path = f"/api/conversations/{(await answer.json())['id']}/messages"
            async with _others(session, path):
                await asyncio.sleep(1)  # until the process has taken what it needs
            async with _others(session, path) as alone:
                await asyncio.sleep(DEADLINE)
            async with _others(session, path) as beside:
                slow = await _begun(server.port, path)
                for turn in itertools.cycle(range(TURNS)):
                    if all(one.closed.is_set() for one in slow):
                        break
                    for one in slow[turn::TURNS]:
                        one.drip()
                    await asyncio.sleep(PACE / TURNS)
    finally:
        code = await server.end(signal.SIGTERM)
    assert code == 0
    assert len(slow) == 2 * EACH
    assert {one.status for one in slow} == {408}
    proof.within(max(one.begun for one in slow), min(one.ended for one in slow), "the last one begins before any ends")
    lived = [one.ended - one.begun for one in slow]
    assert min(lived) >= DEADLINE * 0.9, "as long as it may take"
    proof.within(max(lived), DEADLINE + LATE, "seconds until the last slow one was closed")
    proof.within(beside.p99, 2 * alone.p99 + NOISE_MS, "the others' p99")
    database = database_url.partition(":")[0]
    proof.record("requests of others", database, alone.told, f"{len(alone.times)} by {OTHERS} clients")
    proof.record(
        "the same beside slow requests",
        database,
        f"{beside.told}: {beside.p99 / alone.p99:.2f} times",
        f"{EACH} heads and {EACH} bodies, all 408 after {min(lived):.1f} to {max(lived):.1f} s; {len(beside.times)} by"
        f" {OTHERS} clients, none refused",
    )
