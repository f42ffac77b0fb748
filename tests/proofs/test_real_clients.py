"""Clients that people use, unmodified, cut at any byte: what each assembled is what is stored.

Four writers post, edit, delete and stream messages into one conversation; each client reads it through a proxy of its
own, which cuts it by a plan of its own. The writers stay a little ahead of the slowest reader, so that every cut falls
into a stream that is alive.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
import pytest

from tests import proof
from tests.assembly import Assembly, sha256
from tests.cutting_proxy import CuttingProxy, Ending, Place, PlannedCut, Way, plan
from tests.server_process import ServerProcess
from tests.stream_clients import CLIENTS, StreamClient

WRITERS = 4
AHEAD = 60  # events
THE_END = "That was all."

EARLY = "@microsoft/fetch-event-source"

# What a client cannot survive, by its own fault.
SPARED: dict[str, Collection[Way]] = {
    # It takes an event for read when it has read the id line, before it hands the event over.
    EARLY: {(Place.BEFORE_BLANK_LINE, ending) for ending in Ending},
    # Without TLS it takes what there is of a head for the head when the connection is closed, and closes for good if it
    # does not find the media type there.
    "Chromium": {(Place.HEAD, Ending.BREAK)},
}

PIECES = (
    *("plain words, ", "שלום עולם ", "مرحبا بالعالم ", "नमस्ते ", "e\u0301\u0323 ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ", "👩🏽\u200d🚀", "🇺🇦"),
    *("\u2028", "\r\n", "\n\n", "data: x\n", "id: 7\n\n", ": ", '"\\', "\t"),
)


@dataclass
class _Reader:
    """One client, the proxy it reads through, and what it has made of the stream."""

    client: StreamClient
    proxy: CuttingProxy
    assembly: Assembly = field(default_factory=Assembly)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, event: str, data: str, event_id: str) -> None:
        self.assembly.apply(event, data, event_id)
        if self.assembly.conversation.get("title") == THE_END:
            self.ended.set()

    async def read(self, path: str) -> None:
        """Reads from the start to the end of the talk."""
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self.client.read(self.proxy.origin, path, self.take))
            await self.ended.wait()
            reading.cancel()

    def __str__(self) -> str:
        faults = [*self.proxy.faults, *self.assembly.faults]
        return (
            f"{self.client.name}: event {self.proxy.seq} passed on, {len(self.proxy.planned)} cuts to come, "
            f"{len(faults)} faults {faults[:1]}"
        )


class _Writers:
    """They write about as many events as they are told, never far ahead of the slowest reader."""

    def __init__(
        self, session: aiohttp.ClientSession, path: str, seed: int, events: int, slowest: Callable[[], int]
    ) -> None:
        self._session, self._path, self._seed = session, path, seed
        self._events, self._slowest = events, slowest
        self._begun = 0

    async def write(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(WRITERS):
                tasks.create_task(self._talk(Random(f"{self._seed}/{number}")))
        await self._send("PATCH", self._path, title=THE_END)

    async def _talk(self, random: Random) -> None:
        ids: list[str] = []
        while self._begun < self._events:
            choice = random.random()
            if choice < 0.15 and ids:
                await self._send("PATCH", f"/api/messages/{random.choice(ids)}", content=_text(random))
            elif choice < 0.2 and ids:
                await self._send("DELETE", f"/api/messages/{ids.pop(random.randrange(len(ids)))}")
            elif choice < 0.4:
                ids.append(await self._stream(random))
            else:
                author = random.choice(({"role": "user"}, {"role": "agent", "agent_id": "coding_01"}))
                ids.append((await self._send("POST", f"{self._path}/messages", **author, content=_text(random)))["id"])

    async def _stream(self, random: Random) -> str:
        opened = {"role": "agent", "agent_id": "general_01", "status": "streaming"}
        message_id: str = (await self._send("POST", f"{self._path}/messages", **opened))["id"]
        offset = 0
        for _ in range(random.randint(0, 20)):
            text = _text(random)
            taken = await self._send("POST", f"/api/messages/{message_id}/deltas", offset=offset, text=text)
            offset = taken["length"]
        status = random.choice(("complete", "complete", "failed", "cancelled"))
        await self._send("POST", f"/api/messages/{message_id}/finish", status=status)
        return message_id

    async def _send(self, method: str, path: str, **body: Any) -> Any:
        """Makes one event."""
        self._begun += 1
        while self._begun > self._slowest() + AHEAD:
            await asyncio.sleep(0.01)
        async with self._session.request(method, path, json=body or None) as answer:
            assert answer.ok, f"{method} {path}: {answer.status} {await answer.text()}"
            return await answer.json() if answer.status != 204 else None


def _text(random: Random) -> str:
    return "".join(random.choices(PIECES, k=random.randint(1, 8)))


@dataclass
class _Stored:
    """What the database has at the end."""

    as_of: int
    messages: dict[int, dict[str, Any]]


async def _talk(
    database_url: str, seed: int, events: int, plans: Sequence[tuple[StreamClient, list[PlannedCut]]]
) -> tuple[list[_Reader], _Stored]:
    """Has as many events written under the eyes of the clients, each cut by its plan."""
    longest = 60 + 8 * max(len(cuts) for _, cuts in plans)  # seconds; a reader comes back after one to three
    async with _served(database_url) as server, AsyncExitStack() as stack:
        readers = [
            _Reader(client, await stack.enter_async_context(CuttingProxy("127.0.0.1", server.port, cuts)))
            for client, cuts in plans
        ]
        session = await stack.enter_async_context(aiohttp.ClientSession(server.origin))
        async with session.post("/api/conversations", json={}) as answer:
            path = f"/api/conversations/{(await answer.json())['id']}"
        writers = _Writers(session, path, seed, events, lambda: min(reader.proxy.seq for reader in readers))
        try:
            async with asyncio.timeout(longest), asyncio.TaskGroup() as tasks:
                tasks.create_task(writers.write())
                for reader in readers:
                    tasks.create_task(reader.read(f"{path}/events?after=0"))
        finally:
            print(*readers, sep="\n")  # to be seen when it failed
        return readers, await _stored(session, f"{path}/messages")


@asynccontextmanager
async def _served(database_url: str) -> AsyncIterator[ServerProcess]:
    server = ServerProcess(database_url, SWARM_STREAM_RETRY="0.1")
    await server.start()
    try:
        yield server
    finally:
        code = await server.end(signal.SIGTERM)
    assert code == 0


async def _stored(session: aiohttp.ClientSession, path: str) -> _Stored:
    messages: dict[int, dict[str, Any]] = {}
    window: dict[str, Any] = {"next": 0}
    while window["next"] is not None:
        async with session.get(path, params={"after": window["next"], "limit": 500}) as answer:
            window = await answer.json()
        messages |= {item["position"]: item for item in window["items"]}
    assert list(messages) == list(range(1, window["total"] + 1))
    return _Stored(window["as_of"], messages)


def _check(reader: _Reader, stored: _Stored) -> None:
    assert reader.proxy.faults == []
    assert not reader.proxy.planned
    assert reader.assembly.faults == []
    assert reader.assembly.seqs == list(range(1, stored.as_of + 1))
    assert reader.assembly.messages == stored.messages
    for message in reader.assembly.messages.values():
        assert message["sha256"] == sha256(message["content"])


def _require(client: StreamClient) -> None:
    """Skips what this machine cannot run; where it should be able to (CI), that is a failure."""
    missing = client.missing()
    if missing and os.environ.get("SWARM_REQUIRE_CLIENTS") == "1":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_this_machine_can_run(client: StreamClient) -> None:
    _require(client)


@pytest.mark.proof
@pytest.mark.timeout(1_800)
async def test_what_each_client_assembled_is_what_is_stored(database_url: str, subtests: pytest.Subtests) -> None:
    seed = proof.seed()
    random = Random(seed)
    events, cuts = proof.count(100, 2_000), proof.count(3, 100)
    plans = []
    for client in CLIENTS:
        drawn = plan(random, cuts, events, spare=SPARED.get(client.name, ()))
        missing = client.missing()
        if missing is None:
            plans.append((client, drawn))
        elif proof.is_full():
            pytest.fail(missing)
    readers, stored = await _talk(database_url, seed, events, plans)
    assert stored.as_of > events
    for reader in readers:
        with subtests.test(reader.client.name):
            _check(reader, stored)
            proof.record(
                f"{reader.client.name}, cut at random bytes",
                database_url.partition(":")[0],
                f"{cuts} cuts, {len(reader.assembly.seqs)} events once each, in order",
                f"{reader.assembly.deltas} of them deltas; {len(stored.messages)} messages as stored",
            )


@pytest.mark.proof
@pytest.mark.timeout(600)
async def test_what_fetch_event_source_loses_between_the_id_line_and_the_blank_line_was_written_whole(
    database_url: str,
) -> None:
    client = next(client for client in CLIENTS if client.name == EARLY)
    _require(client)
    seed = proof.seed()
    events = proof.count(60, 600)
    seqs = sorted(Random(seed).sample(range(1, events), proof.count(1, 30)))
    # A proper end: after any other, what has arrived and was not looked at yet may be thrown away.
    cuts = [PlannedCut(seq, Place.BEFORE_BLANK_LINE, Ending.END, 0) for seq in seqs]
    [reader], stored = await _talk(database_url, seed, events, [(client, cuts)])
    assert reader.proxy.faults == []
    assert sorted(reader.proxy.events) == list(range(1, stored.as_of + 1)), "each was written, and written whole"
    assert reader.assembly.seqs == [seq for seq in range(1, stored.as_of + 1) if seq not in seqs]
