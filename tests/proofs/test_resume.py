"""Resume never expires (P3): from each id ever issued, before retention, after it, and while it runs.

What a reader held that had exactly that id, and what it is given then, make the exact state. Goes red when the state
replay leaves out what only deltas touched, when it gives an id from which a reader cannot go on, and when events are
replayed from below the floor.
"""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest

from handlers.resources import DATABASE, HUB
from storage.log import Log
from storage.retention import Retention
from tests import proof
from tests.api import Client
from tests.proofs.talk import TENANT, Author, Json, Talk, difference, new_talk
from tests.reader import Follower, Held
from tests.sse_reader import Frame, SseReader

AT_ONCE = 8  # readers that resume together
_WAIT = 600.0  # seconds for a round: a hundred readers have thousands of events each to read
_LONG = {"SWARM_STREAM_SEND_TIMEOUT": "900", "SWARM_STREAM_IDLE": "80000"}  # no message is ended while readers resume
_EVERY = 50  # events between two states that are kept


class Witness:
    """A reader that has been there from the beginning, and knows what it held after each event."""

    def __init__(self, talk: Talk) -> None:
        self.frames: list[Frame] = []
        self.follower = _follower(talk, Held(), "", self.frames)
        self.follower.target += "?after=0"
        self._seen = 0
        self._data: list[tuple[str, Json]] = []
        self._kept = [Held()]

    def _take_in(self) -> None:
        new, self._seen = self.frames[self._seen :], len(self.frames)
        for frame in new:
            if frame.event == "ready" or not frame.data:
                continue
            data = frame.json
            assert data["seq"] == len(self._data) + 1, "a live reader gets each event once"
            self._data.append((frame.event, data))
            if len(self._data) % _EVERY == 0:
                self._kept.append(self._played(self._kept[-1], len(self._data)))

    def _played(self, held: Held, seq: int) -> Held:
        held = held.copy()
        for event, data in self._data[held.last_seq : seq]:
            held.apply(event, data)
        return held

    def held_at(self, seq: int) -> Held:
        """What one held that had the id of event `seq` last."""
        self._take_in()
        return self._played(self._kept[seq // _EVERY], seq)

    async def reach(self, seq: int) -> None:
        """Waits until it has seen that event."""
        async with asyncio.timeout(30):
            [held] = self.follower.held.values()
            while held.last_seq < seq:
                await asyncio.sleep(0.005)


class Parsed:
    """JSON that many readers are given: parsed once for all of them, who change none of it."""

    def __init__(self) -> None:
        self._known: dict[str, Json] = {}

    def __call__(self, frame: Frame) -> Json:
        found = self._known.get(frame.data)
        if found is None:
            found = self._known[frame.data] = json.loads(frame.data)
        return found


def _follower(talk: Talk, held: Held, last_id: str, frames: list[Frame]) -> Follower:
    assert talk.client.port is not None
    return Follower(
        talk.client.host,
        talk.client.port,
        f"{talk.path}/events",
        {talk.id: held},
        last_id=last_id,
        frames=frames,
    )


@asynccontextmanager
async def _witnessed(talk: Talk) -> AsyncIterator[Witness]:
    witness, stop = Witness(talk), asyncio.Event()
    watching = asyncio.create_task(witness.follower.follow(stop.is_set, timeout=3_600))
    try:
        yield witness
    finally:
        stop.set()
        await watching
    assert witness.follower.connections == 1, "the witness has seen all of it live"


async def _replayed(talk: Talk, last_id: str) -> list[Frame]:
    """All that a reader with this id is given up to `ready`, while nobody writes."""
    frames: list[Frame] = []
    assert talk.client.port is not None
    headers = {"Last-Event-ID": last_id}
    async with SseReader(talk.client.host, talk.client.port, f"{talk.path}/events", headers) as reader:
        assert reader.status == 200
        while not frames or frames[-1].event != "ready":
            frames += [frame for frame in await reader.frames() if frame.data]
    return frames


async def _epoch(client: Client) -> str:
    return str((await (await client.get("/health")).json())["epoch"])


async def _floor(client: Client, talk: Talk) -> int:
    return (await Log(client.app[DATABASE]).heads(TENANT, [talk.id])).heads[talk.id].floor


async def _written(talk: Talk, author: Author, events: int) -> None:
    while await talk.head() < events:
        for _ in range(10):
            await author.act()


def _small_pages(client: Client) -> None:
    """Catching up takes many pages, also where a conversation is short."""
    hub = client.app[HUB]
    hub._replay._config = replace(hub.config, page_events=proof.count(7, 200))


class Resumption:
    """Readers that resume while nobody writes: each is to end with the truth, and with frames as they should be."""

    def __init__(self, talk: Talk, epoch: str, floor: int, head: int, truth: Json) -> None:
        self.resumed = 0
        self.amidst: set[str] = set()
        """Ids from amidst the state: who was cut after one of these held what nobody held at that seq."""
        self._talk = talk
        self._epoch = epoch
        self._floor = floor
        self._head = head
        self._truth = truth
        self._deleted = {m["id"] for m in truth["messages"].values() if m["status"] == "deleted"}
        self._parsed = Parsed()

    async def all(self, ids: dict[str, int], witness: Witness) -> None:
        """Resumes with each of these ids, and with each that is given out on the way; a few at once."""
        left = iter(ids.items())

        async def resume() -> None:
            for last_id, seq in left:
                await self._one(last_id, witness.held_at(seq))
                self.resumed += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(resume())

    async def _one(self, last_id: str, held: Held, *, further: bool = True) -> None:
        *events, ready = await _replayed(self._talk, last_id)
        after = int(last_id.partition("@")[0])
        self._check(after, events, ready)
        for frame in events:
            held.apply(frame.event, self._parsed(frame))
            if further and frame.id is not None and after < self._floor and frame.id not in self.amidst:
                self.amidst.add(frame.id)
                await self._one(frame.id, held.copy(), further=False)
        wrong = difference(self._talk.state_of(held), self._truth)
        assert not wrong, f"resumed from {last_id}, floor {self._floor}, head {self._head}:\n{wrong}"

    def _check(self, after: int, events: list[Frame], ready: Frame) -> None:
        assert (ready.id, ready.json) == (f"{self._head}@{self._epoch}", {"as_of": self._head})
        told = [self._parsed(frame) for frame in events]
        seqs = [data["seq"] for data in told]
        for frame, data in zip(events, told, strict=True):
            if data.get("message_id", data.get("message", {}).get("id")) in self._deleted:
                assert frame.event in {"message.deleted", "message.snapshot"}, "no event shows a text that was deleted"
        ids = [frame.id for frame in events]
        if after >= self._floor:
            assert seqs == list(range(after + 1, self._head + 1)), "each event once"
            assert ids == [f"{seq}@{self._epoch}" for seq in seqs]
            return
        assert all(one < other for one, other in itertools.pairwise(seqs)), "each thing once, in order"
        assert all(frame.event not in {"message.created", "message.delta", "message.completed"} for frame in events)
        # Above the floor it would be given events, which tell nothing of what it has not been shown yet.
        assert ids == [f"{seq}@{self._epoch}" if seq < self._floor else None for seq in seqs]


async def _forgotten(client: Client) -> None:
    """Waits until the hub knows nothing of the conversation any more: whoever resumes is served from the database."""
    async with asyncio.timeout(30):
        while client.app[HUB].channels:
            await asyncio.sleep(0.05)


@pytest.mark.proof
@pytest.mark.timeout(3_000)
@pytest.mark.parametrize("environment", [{"SWARM_STREAM_LINGER": "0.001", **_LONG}], ids=["forgotten soon"])
async def test_each_id_resumes_to_the_exact_state_before_and_after_retention(client: Client, database_url: str) -> None:
    chance = random.Random(proof.seed())
    events = proof.count(180, 3_000)
    _small_pages(client)
    talk = await new_talk(client)
    async with _witnessed(talk) as witness:
        await _written(talk, Author(talk, chance), events)
        head, truth = await talk.truth()
        await witness.reach(head)
    await _forgotten(client)
    epoch = await _epoch(client)
    database = database_url.partition(":")[0]
    assert not difference(talk.state_of(witness.held_at(head)), truth)
    ids = {f"{seq}@{epoch}": seq for seq in range(head + 1)}
    assert {frame.id for frame in witness.frames if frame.id is not None} <= ids.keys()

    before = Resumption(talk, epoch, 0, head, truth)
    await before.all(ids, witness)
    proof.record("resume from each id, before retention", database, f"{before.resumed} ids", f"{head} events")

    retention = Retention(client.app[DATABASE])
    for keep in (head // 2, 0):  # then as far as the messages allow that are still streaming
        await retention.retain(before=None, keep=keep, conversation_id=talk.id)
        floor = await _floor(client, talk)
        assert floor
        after = Resumption(talk, epoch, floor, head, truth)
        await after.all(ids, witness)
        assert after.amidst <= ids.keys()
        proof.record(
            "resume from each id, after retention",
            database,
            f"{after.resumed} ids, {len(after.amidst)} more from amidst the state",
            f"floor {floor} of {head}",
        )


class Round:
    """Readers resume while authors write and retention takes what is oldest; all end exact when these have stopped."""

    def __init__(self, talk: Talk, epoch: str, chance: random.Random, acts: int) -> None:
        self.cuts = 0
        self.replayed_states = 0
        self._talk = talk
        self._epoch = epoch
        self._chance = chance
        self._acts = acts
        self._begun = [asyncio.Event() for _ in range(acts + 1)]
        self._head: int | None = None

    async def run(self, authors: list[Author], held: dict[int, Held], retained: float) -> None:
        """`held` by the seq that each reader resumes from; `retained`: what part of the log goes, bit by bit."""
        readers = {seq: _follower(self._talk, one, f"{seq}@{self._epoch}", []) for seq, one in held.items()}
        async with asyncio.TaskGroup() as tasks:
            for reader in readers.values():
                tasks.create_task(self._read(reader, random.Random(self._chance.random())))
            retaining = tasks.create_task(self._retain(retained))
            await asyncio.gather(*(self._write(author) for author in authors))
            await retaining
            self._head, truth = await self._talk.truth()
        floor = await _floor(self._talk.client, self._talk)
        for seq, reader in readers.items():
            wrong = difference(self._talk.state_of(reader.held[self._talk.id]), truth)
            assert not wrong, f"resumed from {seq}, floor {floor} now, head {self._head}:\n{wrong}"
            self._check(seq, reader.frames or [], floor)

    async def _write(self, author: Author) -> None:
        while left := [act for act in self._begun[: self._acts] if not act.is_set()]:
            left[0].set()
            await author.act()
        self._begun[-1].set()

    async def _reach(self, part: float) -> None:
        """Waits until the authors have begun that part of what they do."""
        async with asyncio.timeout(_WAIT):
            await self._begun[int(part * (self._acts + 1))].wait()

    async def _retain(self, part: float) -> None:
        retention = Retention(self._talk.client.app[DATABASE])
        floor = await _floor(self._talk.client, self._talk)
        steps = 5
        for step in range(1, steps + 1):
            await self._reach(step / (steps + 1))
            head = await self._talk.head()
            lost = floor + (head * part - floor) * step / steps
            await retention.retain(before=None, keep=head - int(lost), conversation_id=self._talk.id)

    async def _read(self, reader: Follower, chance: random.Random) -> None:
        """From some moment on; cut a few times on the way."""
        await self._reach(chance.random())
        [held] = reader.held.values()
        frames = reader.frames
        assert frames is not None
        for _ in range(chance.choice([0, 0, 1, 3])):
            end = len(frames) + chance.choice([1, 5, 50, 300])
            await reader.follow(partial(self._is_cut, frames, end, held), timeout=_WAIT)
            self.cuts += 1
        await reader.follow(partial(self._is_exact, held), timeout=_WAIT)

    def _is_cut(self, frames: list[Frame], end: int, held: Held) -> bool:
        return len(frames) >= end or self._is_exact(held)

    def _is_exact(self, held: Held) -> bool:
        return self._head is not None and held.last_seq >= self._head

    def _check(self, after: int, frames: list[Frame], floor: int) -> None:
        ids = [int(frame.id.partition("@")[0]) for frame in frames if frame.id is not None]
        assert ids == sorted(ids), "an id never goes back"
        assert not ids or ids[0] >= after
        states = [frame for frame in frames if frame.event == "message.snapshot"]
        self.replayed_states += bool(states)
        assert all(frame.id is None or frame.json["seq"] < floor for frame in states)


@pytest.mark.proof
@pytest.mark.timeout(3_000)
@pytest.mark.parametrize("environment", [{"SWARM_STREAM_RING": "4096", **_LONG}], ids=["a few frames in memory"])
async def test_each_id_resumes_to_the_exact_state_while_retention_and_writers_go_on(
    client: Client, database_url: str
) -> None:
    chance = random.Random(proof.seed())
    events, readers, acts = proof.count(120, 3_000), proof.count(60, 120), proof.count(24, 50)
    _small_pages(client)
    talk = await new_talk(client)
    authors = [Author(talk, chance) for _ in range(3)]
    rounds: list[Round] = []
    resumed = 0
    async with _witnessed(talk) as witness:
        await _written(talk, authors[0], events)
        head = await talk.head()
        epoch = await _epoch(client)
        left = list(range(head + 1))
        while left:
            chance.shuffle(left)
            now, left = left[:readers], left[readers:]
            await witness.reach(head)
            # The last ones write nothing: there would always be more ids.
            rounds.append(Round(talk, epoch, chance, acts if left else 0))
            # From all of the log to nearly none of it.
            retained = 0.95 * resumed / (resumed + len(now) + len(left))
            await rounds[-1].run(authors, {seq: witness.held_at(seq) for seq in now}, retained)
            resumed += len(now)
            issued, head = head, await talk.head()
            left += range(issued + 1, head + 1)
        final, truth = await talk.truth()
        await witness.reach(final)
        assert not difference(talk.state_of(witness.held_at(final)), truth)
    assert sum(one.replayed_states for one in rounds), "retention was too slow for the readers"
    proof.record(
        "resume from each id, while retention and 3 writers go on",
        database_url.partition(":")[0],
        f"{resumed} ids, {sum(one.cuts for one in rounds)} cuts on the way",
        f"{sum(one.replayed_states for one in rounds)} given state; floor {await _floor(client, talk)} of {final}",
    )
