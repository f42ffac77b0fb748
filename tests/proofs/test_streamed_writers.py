"""Eight writers stream into one conversation at once, each through a faulty client; some of them die.

Every reader ends with what the writers meant and the database has, and with nothing that streams for ever.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from aiohttp import ClientResponse

from tests import proof
from tests.api import Client, new_conversation
from tests.reader import Follower, Held, sha256, utf16_length
from tests.tcp_proxy import Cut, Hook, TcpProxy

WRITERS = 8
IDLE = 4.0  # seconds; a living writer is never quiet for so long
AWAY = 0.1  # seconds for which a reader stays away that was cut: long enough for the ring to go on without it
BOUND = proof.count(100, 1_500)  # seconds that nothing here takes

_PIECES = (
    *("😀", "👩🏽\u200d🚀", "👨\u200d👩\u200d👧\u200d👦", "🏴\U000e0067\U000e0062\U000e007f", "❤\ufe0f\u200d🔥"),
    *("𝔘𝔫𝔦", "🇺🇦🇵🇱", "\U0010ffff", "e\u0301\u0323", "a\u0308\u0304", "Z\u0351\u036b\u0343", "नमस्ते ", "\u0301"),
    *("שלום עולם ", "مَرْحَبًا ", "\u202eabc\u202c", "\u2067אבג\u2069", "\u200f", "سلام ", "한글"),
    *(" plain words", "\n", "\r\n", "\u2028", "data: x\n\n", "\\u0000", "\x01\x02", '"'),
)  # fmt: skip

Json = dict[str, Any]


@pytest.fixture
def environment() -> dict[str, str]:
    # A ring so small that whoever falls behind, or comes back, reads the log.
    return {"SWARM_STREAM_IDLE": str(IDLE), "SWARM_STREAM_RING": "2048"}


@dataclass
class _Streamed:
    """One message: what its writer meant it to be, and how it ended. `acknowledged` counts code points."""

    text: str
    id: str = ""
    status: str | None = None
    acknowledged: int = 0

    @property
    def died(self) -> bool:
        return self.status is None

    def offset(self, begin: int) -> int:
        return utf16_length(self.text[:begin])

    def told(self, length: int) -> None:
        """So many UTF-16 code units are stored."""
        there = self.text.encode("utf-16-le")[: length * 2].decode("utf-16-le")
        self.acknowledged = max(self.acknowledged, len(there))


@dataclass
class _FaultyWriter:
    """Repeats, overlaps and reorders its deltas, loses their answers, dies; and means one text."""

    client: Client
    conversation_id: str
    chance: Random
    done: Counter[str]

    async def write(self, length: int, fate: str | None = None) -> _Streamed:
        """One message. Its `fate` is one of "lives", "comes back" and "dies"; without it, chance has it."""
        chance = self.chance
        streamed = _Streamed("".join(chance.choices(_PIECES, k=length)))
        opened = await self.client.post(
            f"/api/conversations/{self.conversation_id}/messages",
            json={"role": "agent", "agent_id": "general_01", "status": "streaming"},
        )
        assert opened.status == 201, await opened.text()
        streamed.id = (await opened.json())["id"]
        fate = fate or chance.choices(["lives", "comes back", "dies"], [5, 2, 1])[0]
        dies_at = None if fate == "lives" else chance.randrange(len(streamed.text))
        ways = (self._plain, self._again, self._overlapping, self._reordered, self._unanswered, self._cancelled)
        while streamed.acknowledged < len(streamed.text):
            if dies_at is not None and streamed.acknowledged >= dies_at:
                await self._unanswered(streamed)
                if fate == "dies":
                    self.done["died"] += 1
                    return streamed
                await asyncio.sleep(chance.uniform(0, IDLE / 8))
                # It has forgotten everything but its text, and asks how far it had come.
                streamed.told(await self._taken(streamed, 0, 0))
                self.done["came back"] += 1
                dies_at = None
                continue
            before = self.done.total()
            await chance.choices(ways, [8, 2, 3, 3, 2, 2])[0](streamed)
            assert self.done.total() > before
        streamed.status = chance.choice(["complete", "complete", "complete", "cancelled", "failed"])
        for _ in range(chance.choice([1, 1, 2])):
            finished = await self.client.post(f"/api/messages/{streamed.id}/finish", json={"status": streamed.status})
            assert finished.status == 200, await finished.text()
        return streamed

    def _next(self, streamed: _Streamed) -> tuple[int, int]:
        begin = streamed.acknowledged
        return begin, min(len(streamed.text), begin + self.chance.randint(1, 12))

    async def _plain(self, streamed: _Streamed) -> None:
        streamed.told(await self._taken(streamed, *self._next(streamed)))
        self.done["plain"] += 1

    async def _again(self, streamed: _Streamed) -> None:
        """The same one more than once, at once."""
        begin, end = self._next(streamed)
        for length in await asyncio.gather(
            *(self._taken(streamed, begin, end) for _ in range(self.chance.choice([2, 3])))
        ):
            streamed.told(length)
        self.done["repeated"] += 1

    async def _overlapping(self, streamed: _Streamed) -> None:
        begin, end = self._next(streamed)
        streamed.told(await self._taken(streamed, self.chance.randint(max(0, begin - 20), begin), end))
        self.done["overlapping"] += 1

    async def _reordered(self, streamed: _Streamed) -> None:
        """A later one first, or both at once. What comes too early is 409 with the length, and sent again."""
        begin, middle = self._next(streamed)
        end = min(len(streamed.text), middle + self.chance.randint(1, 12))
        if self.chance.random() < 0.5:
            early = await self._send(streamed, middle, end)
            streamed.told(await self._taken(streamed, begin, middle))
        else:
            early, length = await asyncio.gather(
                self._send(streamed, middle, end), self._taken(streamed, begin, middle)
            )
            streamed.told(length)
        answer = await early.json()
        if early.status == 409:
            assert answer["message_status"] == "streaming"
            self.done["refused"] += 1
        else:
            assert early.status == 200, answer
        streamed.told(answer["length"])
        streamed.told(await self._taken(streamed, middle, end))
        self.done["reordered"] += 1

    async def _unanswered(self, streamed: _Streamed) -> None:
        """Its connection breaks between the question and the answer: nobody knows whether it was taken."""
        body = json.dumps(self._delta(streamed, *self._next(streamed))).encode()
        head = (
            f"POST /api/messages/{streamed.id}/deltas HTTP/1.1\r\nHost: {self.client.host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        _, sink = await asyncio.open_connection(self.client.host, self.client.port)
        sink.write(head.encode() + body)
        await sink.drain()
        await asyncio.sleep(self.chance.choice([0, 0, 0.001, 0.003]))
        sink.transport.abort()
        self.done["unanswered"] += 1

    async def _cancelled(self, streamed: _Streamed) -> None:
        task = asyncio.create_task(self._send(streamed, *self._next(streamed)))
        await asyncio.wait({task}, timeout=self.chance.choice([0, 0.0005, 0.001, 0.003]))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self.done["cancelled"] += 1

    def _delta(self, streamed: _Streamed, begin: int, end: int) -> Json:
        return {"offset": streamed.offset(begin), "text": streamed.text[begin:end]}

    async def _send(self, streamed: _Streamed, begin: int, end: int) -> ClientResponse:
        return await self.client.post(f"/api/messages/{streamed.id}/deltas", json=self._delta(streamed, begin, end))

    async def _taken(self, streamed: _Streamed, begin: int, end: int) -> int:
        """The length after a delta that has to be taken."""
        answer = await self._send(streamed, begin, end)
        assert answer.status == 200, await answer.text()
        length: int = (await answer.json())["length"]
        assert length >= streamed.offset(end)
        return length


@dataclass
class _Talk:
    """The conversation, and where it ends once that is known."""

    client: Client
    id: str
    head: int | None = None
    cuts: int = 0

    def follower(self, port: int | None = None, query: str = "?after=0", **options: Any) -> Follower:
        held = options.pop("held", None) or Held()
        many = options.get("many", False)
        path = f"/api/events?conversations={self.id}:0" if many else f"/api/conversations/{self.id}/events{query}"
        assert self.client.port is not None
        return Follower(self.client.host, port or self.client.port, path, {self.id: held}, **options)

    async def follow(self, follower: Follower) -> None:
        held = follower.held[self.id]
        await follower.follow(lambda: self.head is not None and held.last_seq >= self.head, BOUND)

    async def stored(self) -> tuple[int, dict[int, Json]]:
        messages: dict[int, Json] = {}
        window: Json = {"next": 0}
        while window["next"] is not None:
            path = f"/api/conversations/{self.id}/messages?after={window['next']}&limit=200"
            window = await (await self.client.get(path)).json()
            messages |= {item["position"]: item for item in window["items"]}
        return window["as_of"], messages

    async def ended(self) -> tuple[int, dict[int, Json]]:
        """What is stored, once nothing streams any more."""
        async with asyncio.timeout(IDLE * 2 + 20):
            while True:
                head, messages = await self.stored()
                if all(message["status"] != "streaming" for message in messages.values()):
                    return head, messages
                await asyncio.sleep(IDLE / 10)

    @asynccontextmanager
    async def cutting(self, chance: Random, most: int) -> AsyncIterator[int]:
        """The port of a way to the server on which every connection breaks, after at most so many bytes."""

        def connection() -> Hook:
            left = chance.randint(200, most)

            def pass_on(chunk: bytes) -> bytes:
                nonlocal left
                if len(chunk) >= left:
                    self.cuts += 1
                    raise Cut(chunk[:left], clean=chance.random() < 0.3)
                left -= len(chunk)
                return chunk

            return pass_on

        assert self.client.port is not None
        async with TcpProxy(self.client.host, self.client.port) as proxy:
            proxy.on_connection = connection
            yield proxy.port


async def _from_now(talk: _Talk, begin: asyncio.Event) -> Follower:
    """A page that is opened in the middle of it: subscribes first, and then reads what is there."""
    follower = talk.follower(query="", held=Held(everything=False))
    await begin.wait()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(talk.follow(follower))
        async with asyncio.timeout(BOUND):
            while not follower.ready:
                await asyncio.sleep(0.001)
        window: Json = {"next": 0}
        while window["next"] is not None:
            path = f"/api/conversations/{talk.id}/messages?after={window['next']}&limit=3"
            window = await (await talk.client.get(path)).json()
            follower.held[talk.id].window(window)
    return follower


async def _from_the_start(talk: _Talk, begin: asyncio.Event) -> Follower:
    await begin.wait()
    follower = talk.follower()
    await talk.follow(follower)
    return follower


@dataclass
class _Written:
    messages: list[_Streamed] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)


async def _write(talk: _Talk, seed: int, messages: int, pieces: int, half: asyncio.Event) -> _Written:
    written = _Written()

    async def write(number: int) -> None:
        chance = Random(f"{seed}/{number}")
        writer = _FaultyWriter(talk.client, talk.id, chance, written.done)
        for n in range(messages):
            # Whatever chance has in store, one dies and one comes back.
            fate = {0: "dies", 1: "comes back"}.get(number) if n == 0 else None
            written.messages.append(await writer.write(chance.randint(1, pieces), fate))
            if len(written.messages) * 2 >= messages * WRITERS:
                half.set()

    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        for number in range(WRITERS):
            tasks.create_task(write(number))
    return written


def _check_stored(stored: dict[int, Json], written: _Written) -> None:
    by_id = {message["id"]: message for message in stored.values()}
    assert by_id.keys() == {streamed.id for streamed in written.messages}
    for streamed in written.messages:
        message = by_id[streamed.id]
        content = message["content"]
        if streamed.died:
            assert message["status"] == "failed"
            assert streamed.text.startswith(content)
            assert len(content) >= streamed.acknowledged, "acknowledged is durable"
        else:
            assert (message["status"], content) == (streamed.status, streamed.text)
        assert (message["sha256"], message["length"]) == (sha256(content), utf16_length(content))


@pytest.mark.proof
@pytest.mark.timeout(1_800)
async def test_every_reader_has_what_eight_faulty_writers_meant(client: Client, database_url: str) -> None:
    seed = proof.seed()
    talk = _Talk(client, await new_conversation(client))
    half = asyncio.Event()
    begun = asyncio.Event()
    begun.set()
    every = proof.count(20_000, 100_000)  # bytes
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        ports = [await stack.enter_async_context(talk.cutting(Random(f"{seed}/cuts/{n}"), every)) for n in range(3)]
        followers = {
            "from the start": talk.follower(frames=[]),
            "HTTP/1.0": talk.follower(version="1.0"),
            "cut": talk.follower(ports[0], pause=AWAY),
            "cut, HTTP/1.0": talk.follower(ports[1], version="1.0", pause=AWAY),
            # It gets on by its cursors, of which there must be some before every cut.
            "cut, several conversations": talk.follower(ports[2], many=True, pause=AWAY),
            "several conversations": talk.follower(many=True),
        }
        for follower in followers.values():
            tasks.create_task(talk.follow(follower))
        late = tasks.create_task(_from_the_start(talk, half))
        from_now = tasks.create_task(_from_now(talk, half))
        written = await _write(talk, seed, proof.count(2, 12), proof.count(60, 300), half)
        talk.head, stored = await talk.ended()
    _check_stored(stored, written)
    for name, follower in {**followers, "late": late.result(), "from now": from_now.result()}.items():
        held = follower.held[talk.id]
        assert held.resets == 0, name
        assert held.last_seq == talk.head, name
        expected = stored if held.everything else {position: stored[position] for position in held.messages}
        assert held.messages == expected, name
        for message in held.messages.values():
            assert message["sha256"] == sha256(message["content"]), name
    assert len(from_now.result().held[talk.id].messages) >= WRITERS
    frames = followers["from the start"].frames or []
    seqs = [frame.json["seq"] for frame in frames if frame.event.startswith("message.")]
    assert seqs == list(range(1, talk.head + 1)), "each event once, in order"
    assert talk.cuts >= 3
    done = written.done
    deltas = sum(frame.event == "message.delta" for frame in frames)
    faults = ", ".join(f"{done[name]} {name}" for name in ("repeated", "overlapping", "reordered", "refused"))
    proof.record(
        "eight faulty writers into one conversation",
        database_url.partition(":")[0],
        f"{len(written.messages)} messages in {deltas} deltas",
        f"{faults}, {done['unanswered'] + done['cancelled']} cut off, {done['died']} writers died,"
        f" {done['came back']} came back; {len(followers) + 2} readers, {talk.cuts} cuts: all exact",
    )
