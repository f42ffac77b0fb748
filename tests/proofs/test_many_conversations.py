"""64 conversations on one connection that is cut at random bytes, several writers streaming into each.

Among them one that was deleted before, one that is deleted meanwhile, one of another tenant and an unknown one. Goes
red when the vector of a `cursor` is not where its reader stands, or is read in another order than the request's.
"""

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any

import pytest

from events.conversation_log import ConversationLog, Draft
from handlers.resources import CONVERSATIONS, LOG
from storage.records import EMPTY_OBJECT, new_id
from tests import proof
from tests.api import Client, new_conversation
from tests.reader import Follower, Held
from tests.tcp_proxy import Cut, Hook, TcpProxy

TEXTS = ("Łódź ", "😀", "e\u0301", "שלום ", "\r\n", "data: x\n\n", "\u2028", "👩‍👩‍👧‍👦 ")
FOLLOWED = 64
CUT_READERS = 2


@dataclass
class _Exact(Held):
    """Nothing here is ever read as a state: what is left when repeats are dropped has no gap either."""

    repeats: int = 0

    def apply(self, event: str, data: dict[str, Any]) -> None:
        """Takes in an event; its seq is the next one, or one that is there."""
        if data["seq"] <= self.last_seq:
            self.repeats += 1
        else:
            assert data["seq"] == self.last_seq + 1, f"a gap: {data['seq']} after {self.last_seq}"
        super().apply(event, data)


@dataclass
class _Request:
    """What is asked for, in a random order, and which of that is not what it seems."""

    names: list[str]
    deleted_before: str
    deleted_meanwhile: str
    foreign: str
    unknown: str

    @property
    def gone(self) -> set[str]:
        """What a reader cannot tell apart."""
        return {self.deleted_before, self.foreign, self.unknown}

    @property
    def whole(self) -> list[str]:
        """Those that are there all the time."""
        return [name for name in self.names if name not in self.gone and name != self.deleted_meanwhile]


async def _request(client: Client) -> _Request:
    names = [await new_conversation(client) for _ in range(FOLLOWED - 2)]
    theirs = await client.app[CONVERSATIONS].create("other", "theirs", EMPTY_OBJECT, None)
    foreign, unknown = str(json.loads(theirs.body)["id"]), new_id()
    assert (await client.delete(f"/api/conversations/{names[0]}")).status == 204
    order = random.sample([*names, foreign, unknown], FOLLOWED)
    return _Request(order, names[0], names[1], foreign, unknown)


async def _ask(client: Client, path: str, body: Any) -> Any:
    """The document, or None when its conversation is not there. 503 passes."""
    while True:
        async with client.post(path, json=body) as answer:
            if answer.status != 503:
                assert answer.status in {200, 201, 404}, await answer.text()
                return None if answer.status == 404 else await answer.json()
        await asyncio.sleep(0.1)


async def _stream_messages(client: Client, conversation_id: str, messages: int, deltas: int) -> None:
    """One writer. It stops when its conversation is deleted."""
    for _ in range(messages):
        path = f"/api/conversations/{conversation_id}/messages"
        message = await _ask(client, path, {"role": "user", "status": "streaming"})
        if message is None:
            return
        length = 0
        for _ in range(random.randint(1, 2 * deltas - 1)):
            text = random.choice(TEXTS) * random.randint(1, 4)
            told = await _ask(client, f"/api/messages/{message['id']}/deltas", {"offset": length, "text": text})
            if told is None:
                return
            length = told["length"]
        status = random.choice(["complete", "complete", "failed", "cancelled"])
        await _ask(client, f"/api/messages/{message['id']}/finish", {"status": status})


async def _write_theirs(log: ConversationLog, conversation_id: str, stop: asyncio.Event) -> None:
    """The other tenant is busy, too."""
    while not stop.is_set():
        await log.post("other", conversation_id, [Draft("user", "theirs")], many=False, key=None)
        await asyncio.sleep(0.01)


def _cut_at_random() -> Hook:
    """For one connection: it ends after so many bytes, in the middle of whatever is there."""
    # The longest are longer than what one write brings: a reader that is cut in each would never come further.
    left = random.choice([random.randint(1, 1_000), random.randint(1_000, 10_000), random.randint(10_000, 200_000)])

    def cut(chunk: bytes) -> bytes:
        nonlocal left
        if len(chunk) >= left:
            raise Cut(chunk[:left], clean=random.random() < 0.5)
        left -= len(chunk)
        return chunk

    return cut


async def _stored(client: Client, conversation_id: str) -> tuple[dict[int, Any], int]:
    """All messages by position, and the seq they are as of."""
    stored: dict[int, Any] = {}
    after, as_of = 0, 0
    while True:
        path = f"/api/conversations/{conversation_id}/messages?after={after}&limit=500"
        async with client.get(path) as answer:
            window = await answer.json()
        stored |= {item["position"]: item for item in window["items"]}
        as_of = window["as_of"]
        if window["next"] is None:
            return stored, as_of
        after = window["next"]


@pytest.mark.proof
@pytest.mark.timeout(1_800)
async def test_each_of_64_conversations_is_exact_over_a_connection_that_is_cut_at_random_bytes(
    client: Client, database_url: str
) -> None:
    random.seed(proof.seed())
    request = await _request(client)
    target = f"/api/events?conversations={','.join(f'{name}:0' for name in request.names)}"
    stop = asyncio.Event()
    heads: dict[str, int] = {}

    def done(reader: Follower) -> bool:
        return bool(heads) and all(reader.held[name].last_seq >= head for name, head in heads.items())

    assert client.port is not None
    async with TcpProxy(client.host, client.port) as proxy, asyncio.TaskGroup() as tasks:
        proxy.on_connection = _cut_at_random

        def follower(host: str, port: int) -> Follower:
            return Follower(host, port, target, {name: _Exact() for name in request.names}, many=True)

        cut = [follower("127.0.0.1", proxy.port) for _ in range(CUT_READERS)]
        uncut = follower(client.host, client.port)
        uncut.frames = []
        for reader in (*cut, uncut):
            tasks.create_task(reader.follow(lambda reader=reader: done(reader), 1_500))  # type: ignore[misc]
        tasks.create_task(_write_theirs(client.app[LOG], request.foreign, stop))
        writers, messages, deltas = proof.count(2, 3), proof.count(2, 8), proof.count(5, 20)
        written = [
            tasks.create_task(_stream_messages(client, name, messages, deltas))
            for name in (*request.whole, request.deleted_meanwhile)
            for _ in range(writers)
        ]
        await asyncio.wait(written[: len(written) // 2])
        assert (await client.delete(f"/api/conversations/{request.deleted_meanwhile}")).status == 204
        await asyncio.wait(written)
        stop.set()
        stored = {name: await _stored(client, name) for name in request.whole}
        heads |= {name: as_of for name, (_, as_of) in stored.items()}
    for reader in (*cut, uncut):
        assert request.gone <= reader.gone <= {*request.gone, request.deleted_meanwhile}
        deleted = reader.held[request.deleted_meanwhile]
        assert deleted.deleted or request.deleted_meanwhile in reader.gone
        for name in request.gone:
            assert not reader.held[name].last_seq, "told of what is not there"
        for name, (messages_stored, as_of) in stored.items():
            held = reader.held[name]
            assert (held.last_seq, held.resets) == (as_of, 0)
            assert held.messages == messages_stored
    assert not any(frame.event == "drain" for frame in uncut.frames)
    assert uncut.held[request.deleted_meanwhile].deleted
    if uncut.connections == 1:  # on a machine that is too busy it may lose its patience
        assert not any(held.repeats for held in uncut.held.values() if isinstance(held, _Exact)), "nothing comes twice"
    cuts = sum(reader.connections - 1 for reader in cut)
    assert cuts > proof.count(10, 100), "too few to mean anything"
    events = sum(heads.values())
    proof.record(
        f"{len(heads)} of {FOLLOWED} conversations on one connection, {writers} writers in each, cut at random bytes",
        database_url.partition(":")[0],
        f"{cuts} cuts, 0 of {CUT_READERS * events} events lost or repeated",
        f"{events} events; 1 deleted before, 1 meanwhile, 1 foreign, 1 unknown",
    )
