"""Two processes on one database: what one writes the other's readers get, by the doorbell and without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from handlers.resources import DATABASE, HUB
from storage.timeline import new_epoch
from tests.api import Client, new_conversation, post_messages
from tests.conftest import serving
from tests.sse_reader import SseReader
from tests.valkey_server import ValkeyServer

Two = tuple[Client, Client]


@pytest.fixture(params=["without", "valkey", "cluster"])
def doorbell(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of a doorbell, or of none."""
    if request.param == "without":
        return {}
    if request.param == "valkey":
        return {"REDIS_URL": request.getfixturevalue("valkey").url}
    return {"REDIS_URL": request.getfixturevalue("valkey_cluster").url, "SWARM_REDIS_CLUSTER": "1"}


@pytest.fixture
async def two(database_url: str, doorbell: dict[str, str], environment: dict[str, str]) -> AsyncIterator[Two]:
    async with AsyncExitStack() as stack:
        settings = {"DATABASE_URL": database_url, **doorbell, **environment}
        one, other = [await stack.enter_async_context(serving(settings)) for _ in range(2)]
        for client in (one, other):
            await _until(lambda client=client: client.app[HUB].bus.live == bool(doorbell))
        yield one, other


async def _until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def _reader(client: Client, target: str, last_id: str = "") -> SseReader:
    assert client.port is not None
    return SseReader(client.host, client.port, target, {"Last-Event-ID": last_id} if last_id else {})


async def _heard_by(client: Client, conversation_id: str) -> None:
    """Returns once the doorbell, if there is one, is listened to for this conversation."""
    hub = client.app[HUB]
    if hub.bus.live:
        bus: Any = hub.bus
        await _until(lambda: f"default/{conversation_id}" in bus._topics and not bus._added)


async def test_what_one_writes_the_others_readers_get_once_and_in_order(two: Two) -> None:
    one, other = two
    conversation_id = await new_conversation(one)
    path = f"/api/conversations/{conversation_id}"
    async with (
        _reader(other, f"{path}/events") as alone,
        _reader(other, f"/api/events?conversations={conversation_id}") as several,
    ):
        for reader in (alone, several):
            await reader.until("ready")
        seqs: list[int] = []
        for number in range(40):
            # From both, so that each hears of events between its own.
            await post_messages((one, other)[number % 3 == 0], conversation_id, 1 + number % 2)
        made = await (await one.post(f"{path}/messages", json={"role": "user", "status": "streaming"})).json()
        for offset in range(20):
            delta = {"offset": offset, "text": "x"}
            assert (await one.post(f"/api/messages/{made['id']}/deltas", json=delta)).status == 200
        last = 60 + 1 + 20
        for reader in (alone, several):
            seqs = []
            while len(seqs) < last:
                frame = await reader.event()
                if "seq" in (frame.json if frame.data else {}):
                    seqs.append(frame.json["seq"])
            assert seqs == list(range(1, last + 1))


async def test_the_feed_tells_what_the_other_process_changes(two: Two) -> None:
    one, other = two
    async with _reader(other, "/api/events") as feed:
        await feed.until("ready")
        conversation_id = await new_conversation(one, title="made")
        frame = await feed.event()
        assert (frame.event, frame.json["conversation"]["title"]) == ("feed.conversation", "made")
        await post_messages(one, conversation_id, 3)
        while frame.json["conversation"]["message_count"] < 3:
            frame = await feed.event()
        assert (await one.delete(f"/api/conversations/{conversation_id}")).status == 204
        while frame.event != "feed.conversation.deleted":
            frame = await feed.event()


async def test_a_new_timeline_reaches_the_readers_of_both(two: Two) -> None:
    one, other = two
    conversation_id = await new_conversation(one)
    path = f"/api/conversations/{conversation_id}/events"
    async with _reader(one, path) as first, _reader(other, path) as second:
        for reader in (first, second):
            await reader.until("ready")
        epoch = await asyncio.to_thread(new_epoch, one.app[DATABASE].config)
        for reader in (first, second):
            assert [frame.event for frame in await reader.until("ready")] == ["reset", "ready"]
        await _heard_by(other, conversation_id)
        await post_messages(one, conversation_id, 1)
        for reader in (first, second):
            assert (await reader.event()).id == f"1@{epoch}"


async def test_an_id_of_one_is_resumed_at_the_other_that_has_not_heard_of_it(two: Two) -> None:
    one, other = two
    conversation_id = await new_conversation(one)
    path = f"/api/conversations/{conversation_id}/events"
    async with _reader(one, path) as reader:
        await reader.until("ready")
        await post_messages(one, conversation_id, 3)
        frames = [await reader.event() for _ in range(3)]
    async with _reader(other, path, frames[1].id or "") as reader:
        assert (await reader.event()).id == frames[2].id


@pytest.mark.parametrize("doorbell", ["valkey"], indirect=True)
@pytest.mark.parametrize("environment", [{"SWARM_REDIS_COMPARE": "60"}], ids=["nothing is compared"])
@pytest.mark.parametrize("lost", [[2], [1, 2, 3, 5], [4]])
async def test_what_the_doorbell_loses_is_read_when_the_next_one_comes(
    two: Two, monkeypatch: pytest.MonkeyPatch, lost: list[int]
) -> None:
    one, other = two
    conversation_id = await new_conversation(one)
    bus = one.app[HUB].bus
    publish, count = bus.publish, 0

    def lossy(topic: str, data: bytes) -> None:
        nonlocal count
        if conversation_id in topic:
            count += 1
            if count in lost:
                return
        publish(topic, data)

    monkeypatch.setattr(bus, "publish", lossy)
    async with _reader(other, f"/api/conversations/{conversation_id}/events") as reader:
        await reader.until("ready")
        await _heard_by(other, conversation_id)
        for _ in range(6):
            await post_messages(one, conversation_id, 1)
        assert [(await reader.event()).json["seq"] for _ in range(6)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("doorbell", ["valkey"], indirect=True)
@pytest.mark.parametrize("environment", [{"SWARM_REDIS_COMPARE": "60"}], ids=["nothing is compared"])
async def test_what_is_written_before_the_doorbell_is_listened_to_is_found_when_it_is(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    conversation_id = await new_conversation(one)
    bus = other.app[HUB].bus
    subscribe = bus.subscribe
    late: list[str] = []
    monkeypatch.setattr(bus, "subscribe", late.extend)
    async with _reader(other, f"/api/conversations/{conversation_id}/events") as reader:
        await reader.until("ready")
        await post_messages(one, conversation_id, 2)
        subscribe(late)
        assert [(await reader.event()).json["seq"] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("doorbell", ["valkey"], indirect=True)
async def test_the_last_one_that_it_loses_is_found_by_comparing(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = two
    conversation_id = await new_conversation(one)
    monkeypatch.setattr(one.app[HUB].bus, "publish", lambda topic, data: None)
    async with _reader(other, f"/api/conversations/{conversation_id}/events") as reader:
        await reader.until("ready")
        await post_messages(one, conversation_id, 1)
        assert (await reader.event()).json["seq"] == 1


@pytest.mark.parametrize("doorbell", ["valkey"], indirect=True)
@pytest.mark.parametrize("environment", [{"SWARM_REDIS_COMPARE": "60"}], ids=["nothing is compared"])
async def test_a_batch_that_is_too_large_for_the_doorbell_arrives_all_the_same(two: Two) -> None:
    one, other = two
    conversation_id = await new_conversation(one)
    path = f"/api/conversations/{conversation_id}"
    async with _reader(other, f"{path}/events") as reader:
        await reader.until("ready")
        await _heard_by(other, conversation_id)
        items = [{"role": "user", "content": "." * 10_000}] * 30
        assert (await one.post(f"{path}/messages", json=items)).status == 201
        assert [(await reader.event()).json["seq"] for _ in range(30)] == list(range(1, 31))


@pytest.mark.parametrize("doorbell", ["without"], indirect=True)
async def test_health_says_that_there_is_no_redis(two: Two) -> None:
    health = await (await two[0].get("/health")).json()
    assert (health["status"], health["redis"]) == ("healthy", "off")


async def test_a_redis_that_goes_away_costs_only_time_and_is_told_by_health(
    database_url: str, own_valkey: ValkeyServer
) -> None:
    settings = {"DATABASE_URL": database_url, "REDIS_URL": own_valkey.url}
    async with serving(settings) as one, serving(settings) as other:
        for client in (one, other):
            await _until(lambda client=client: client.app[HUB].bus.live)
        assert (await (await one.get("/health")).json())["redis"] == "connected"
        conversation_id = await new_conversation(one)
        async with _reader(other, f"/api/conversations/{conversation_id}/events") as reader:
            await reader.until("ready")
            seq = 0
            for happen in (own_valkey.suspend, own_valkey.resume, own_valkey.kill, own_valkey.start):
                await asyncio.to_thread(happen)
                for _ in range(5):
                    await post_messages(one, conversation_id, 1)
                    seq += 1
                    assert (await reader.event()).json["seq"] == seq
                if happen == own_valkey.kill:
                    await _until(lambda: not one.app[HUB].bus.live)
                    health = await one.get("/health")
                    assert health.status == 200
                    assert (await health.json())["status"] == "degraded"
            await _until(lambda: one.app[HUB].bus.live and other.app[HUB].bus.live)
