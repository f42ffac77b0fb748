"""A reader that scrolls: it loads windows at random places while its stream lags and eight writers stream.

By the rules of the wire each message that it holds equals the database at the end: no delta is lost, and none is
applied twice (`tests.reader.Held` asserts the latter at each delta).
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from events.subscriber import Subscriber
from handlers.resources import HUB
from tests import proof
from tests.api import Client, new_conversation
from tests.reader import Follower, Held

WRITERS = 8
# Each reader takes nothing, after so many frames, until so many further events are written. Some are nearly level, so
# that windows and events cross on their way; some fall off the ring, and catch up.
STALLS = ((20, 3), (30, 10), (100, 200), (150, 300))
BOUND = proof.count(100, 800)  # seconds that nothing here takes

Json = dict[str, Any]


@pytest.fixture
def environment() -> dict[str, str]:
    return {"SWARM_STREAM_RING": "2048"}


async def _post(client: Client, path: str, body: Json) -> Json:
    answer = await client.post(path, json=body)
    assert answer.status in {200, 201}, await answer.text()
    told: Json = await answer.json()
    return told


async def _write(client: Client, base: str, chance: Random, messages: int) -> None:
    """Streams one message after the other, and edits, deletes and posts in between."""
    done: list[str] = []
    for _ in range(messages):
        message = await _post(client, f"{base}/messages", {"role": "user", "status": "streaming"})
        path, length = f"/api/messages/{message['id']}", 0
        for _ in range(chance.randint(0, 60)):
            text = "".join(chance.choices(["word ", "😀", "e\u0301", "שלום ", "x" * 999], k=chance.randint(1, 4)))
            length = (await _post(client, f"{path}/deltas", {"offset": length, "text": text}))["length"]
        if chance.random() < 0.1:
            assert (await client.delete(path)).status == 204  # while it streams
            continue
        await _post(client, f"{path}/finish", {"status": chance.choice(["complete", "failed", "cancelled"])})
        done.append(path)
        if chance.random() < 0.4:
            edited = await client.patch(chance.choice(done), json={"content": "edited " + "y" * chance.randint(0, 900)})
            assert edited.status == 200
        if chance.random() < 0.1:
            gone = done.pop(chance.randrange(len(done)))
            assert (await client.delete(gone)).status == 204


def _keep_send_buffers_small(client: Client) -> None:
    """Or the server's kernel would take megabytes for a reader on the same machine, and none would ever lag."""
    assert client.server.runner is not None
    for site in client.server.runner.sites:
        assert isinstance(site._server, asyncio.Server)
        for listening in site._server.sockets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)  # connections inherit it


@dataclass
class _Page:
    """What scrolls: a stream that is read slowly, and windows that arrive late and out of order."""

    client: Client
    conversation_id: str
    chance: Random
    stalls: tuple[int, int]
    written: Callable[[], int]
    """The seq of the last event."""
    stop: asyncio.Event
    held: Held = field(default_factory=lambda: Held(everything=False))
    windows: int = 0
    late: int = 0
    """Windows that were older than the stream when they arrived."""
    head: int | None = None
    frames: int = 0

    async def follow(self) -> None:
        assert self.client.port is not None
        follower = Follower(
            self.client.host,
            self.client.port,
            f"/api/conversations/{self.conversation_id}/events",
            {self.conversation_id: self.held},
            pace=self._pace,
            receive_buffer=4_096,
        )
        await follower.follow(lambda: self.head is not None and self.held.last_seq >= self.head, BOUND)

    async def _pace(self) -> None:
        frames, events = self.stalls
        self.frames += 1
        if self.frames % frames == 0:
            until = self.written() + events
            while self.written() < until and not self.stop.is_set():
                await asyncio.sleep(0.005)

    async def scroll(self) -> None:
        """Loads up to three windows at a time, until it is told to stop and the last has come."""
        while not self.stop.is_set():
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self.chance.randint(1, 3)):
                    tasks.create_task(self._load())
            # None is on its way.
            for position in list(self.held.messages):
                if self.chance.random() < 0.1:
                    self.held.let_go(position)

    async def _load(self) -> None:
        chance = self.chance
        limit = chance.choice([1, 3, 10, 50])
        place = chance.randint(1, max(self.held.messages, default=1) + 5)
        anchor = chance.choice(["", f"&from={place}", f"&before={place}", f"&after={place}", f"&around={place}"])
        answer = await self.client.get(f"/api/conversations/{self.conversation_id}/messages?limit={limit}{anchor}")
        assert answer.status == 200
        window = await answer.json()
        # On its way for a while, during which the stream goes on and a later window may overtake it.
        await asyncio.sleep(chance.choice([0, 0, 0.005, 0.02, 0.1]))
        self.windows += 1
        self.late += window["as_of"] < self.held.last_seq
        self.held.window(window)


async def _stored(client: Client, base: str) -> tuple[int, dict[int, Json]]:
    messages: dict[int, Json] = {}
    window: Json = {"next": 0}
    while window["next"] is not None:
        window = await (await client.get(f"{base}/messages?after={window['next']}&limit=200")).json()
        messages |= {item["position"]: item for item in window["items"]}
    return window["as_of"], messages


@pytest.mark.proof
@pytest.mark.timeout(900)
async def test_what_a_scrolling_reader_holds_is_what_is_stored(
    client: Client, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = proof.seed()
    conversation_id = await new_conversation(client)
    base = f"/api/conversations/{conversation_id}"
    fallen = 0
    pump = client.app[HUB]._pump
    catch_up = pump._catch_up

    def counted(subscriber: Subscriber) -> None:
        nonlocal fallen
        fallen += 1
        catch_up(subscriber)

    monkeypatch.setattr(pump, "_catch_up", counted)
    _keep_send_buffers_small(client)
    stop = asyncio.Event()
    [channel] = (await client.app[HUB].watch("default", [conversation_id])).values()
    pages = [
        _Page(client, conversation_id, Random(f"{seed}/page/{n}"), stalls, lambda: channel.last_seq, stop)
        for n, stalls in enumerate(STALLS)
    ]
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        for page in pages:
            tasks.create_task(page.follow())
        scrolling = [tasks.create_task(page.scroll()) for page in pages]
        async with asyncio.TaskGroup() as writers:
            for n in range(WRITERS):
                writers.create_task(_write(client, base, Random(f"{seed}/{n}"), proof.count(4, 40)))
        stop.set()
        await asyncio.gather(*scrolling)
        head, stored = await _stored(client, base)
        # Each learns where it ends.
        for page in pages:
            page.head = head
    for page in pages:
        held = page.held
        assert held.last_seq == head
        assert held.resets == 0
        assert held.messages
        assert held.messages == {position: stored[position] for position in held.messages}
    windows, late = sum(page.windows for page in pages), sum(page.late for page in pages)
    assert fallen, "nobody lagged"
    assert late, "no window was late"
    proof.record(
        "scrolling beside 8 streaming writers",
        database_url.partition(":")[0],
        f"{windows} windows, {late} of them older than the stream",
        f"{head} events, {len(pages)} readers, {fallen} times caught up from the log;"
        f" {sum(len(page.held.messages) for page in pages)} messages held, all exact",
    )
