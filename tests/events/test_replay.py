"""Catching up from the database, where what is lacked is not there any more."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from events.frame import event_frame
from handlers.resources import DATABASE, HUB, LOG
from storage.retention import Retention
from tests.api import Client, new_conversation, post_messages
from tests.events.test_hub import Reader, _until, _watch
from tests.sse_reader import SseReader


@pytest.mark.parametrize("page_events", [500, 2])
async def test_of_a_deleted_conversation_whose_state_is_gone_a_reader_is_told_the_end_alone(
    client: Client, page_events: int
) -> None:
    """The events above the floor continue what it was never given: a text would have a gap."""
    conversation_id = await new_conversation(client)
    path = f"/api/conversations/{conversation_id}/messages"
    message = await (await client.post(path, json={"role": "user", "status": "streaming"})).json()
    for offset in range(6):
        delta = {"offset": offset, "text": str(offset)}
        assert (await client.post(f"/api/messages/{message['id']}/deltas", json=delta)).status == 200
    assert (await client.post(f"/api/messages/{message['id']}/finish", json={"status": "complete"})).status == 200
    await Retention(client.app[DATABASE]).retain(before=None, keep=4, conversation_id=conversation_id)
    hub = client.app[HUB]
    hub._replay._config = replace(hub.config, page_events=page_events)
    reader = Reader(hub, await _watch(hub, conversation_id), 1)
    channels = hub.channels.copy()
    hub.channels.clear()  # as when another process deletes it: no commit tells this one
    await client.app[LOG].delete_conversation("default", conversation_id, key=None)
    hub.channels.update(channels)
    hub.attach(reader.stream)
    await _until(lambda: reader.closing)
    assert [event for event in reader.events if event[0] != "ready"] == [("conversation.deleted", 9)]


async def test_a_reader_that_catches_up_while_the_log_has_gone_back_is_reset_not_cut_off(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup was restored, and `new-epoch` has not been run yet: the reader asks for what is not there any more."""
    conversation_id = await new_conversation(client)
    await post_messages(client, conversation_id, 6)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation_id)
    compared, pages = asyncio.Event(), 0
    moved, page = hub._log.moved, hub._log.frames

    async def late_moved(*arguments: Any) -> Any:
        await compared.wait()
        return await moved(*arguments)

    async def counted_page(*arguments: Any, **named: Any) -> Any:
        nonlocal pages
        pages += 1
        return await page(*arguments, **named)

    monkeypatch.setattr(hub._log, "moved", late_moved)
    monkeypatch.setattr(hub._log, "frames", counted_page)
    async with client.app[DATABASE].transaction("test.restore") as connection:
        for statement in (
            "DELETE FROM events WHERE seq > 2",
            "DELETE FROM messages WHERE position > 2",
            "UPDATE conversations SET last_seq = 2, message_count = 2",
        ):
            await connection.execute(text(statement))
    reader = Reader(hub, channel, 3)
    hub.attach(reader.stream)
    await _until(lambda: pages > 1)
    assert not reader.closing
    compared.set()
    await _until(lambda: ("ready", 2) in reader.events)
    assert reader.events == [("reset", 2), ("ready", 2)]
    assert not reader.closing


async def _streaming(client: Client, conversation_id: str, text: str) -> str:
    path = f"/api/conversations/{conversation_id}/messages"
    message: dict[str, Any] = await (await client.post(path, json={"role": "user", "status": "streaming"})).json()
    await _delta(client, message["id"], 0, text)
    return str(message["id"])


async def _delta(client: Client, message_id: str, offset: int, text: str) -> None:
    assert (
        await client.post(f"/api/messages/{message_id}/deltas", json={"offset": offset, "text": text})
    ).status == 200


@pytest.mark.parametrize("many", [False, True], ids=["one", "several"])
async def test_an_id_from_amidst_a_state_replay_is_resumed_by_state_though_memory_holds_what_follows(
    client: Client, many: bool
) -> None:
    """What memory holds is about messages that the reader was not given yet: retention ran in another process."""
    conversation_id = await new_conversation(client)
    message_id = await _streaming(client, conversation_id, "abc")
    hub = client.app[HUB]
    channel = await _watch(hub, conversation_id)
    for offset in range(3, 13):
        await _delta(client, message_id, offset, str(offset % 10))
    await Retention(client.app[DATABASE]).retain(before=None, keep=0, conversation_id=conversation_id)
    assert (channel.floor, channel.base) == (0, 3)  # of which the hub knows nothing
    assert (await client.post(f"/api/messages/{message_id}/finish", json={"status": "complete"})).status == 200
    await Retention(client.app[DATABASE]).retain(before=None, keep=1, conversation_id=conversation_id)
    target, place = f"/api/conversations/{conversation_id}/events", f"8@{hub.epoch}"
    if many:
        target = f"/api/events?conversations={conversation_id}"
    assert client.port is not None
    async with SseReader(client.host, client.port, target, {"Last-Event-ID": place}) as reader:
        frames = [frame for frame in await reader.until("ready") if frame.event not in {"cursor", "ready"}]
    assert [(frame.event, frame.json["message"]["content"]) for frame in frames] == [
        ("message.snapshot", "abc3456789012")
    ]


async def test_a_state_replay_ends_though_what_streams_moves_on_before_each_of_its_pages(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation_id = await new_conversation(client)
    messages = [await _streaming(client, conversation_id, "." * 900) for _ in range(6)]
    lengths = dict.fromkeys(messages, 900)
    hub = client.app[HUB]
    hub._replay._config = replace(hub.config, page_chars=1_000)
    channel = await _watch(hub, conversation_id)
    state, pages = hub._log.state, 0

    async def page_of_a_slow_reader(*arguments: Any, **named: Any) -> Any:
        nonlocal pages
        pages += 1
        if pages < 50:
            for message_id in messages:
                await _delta(client, message_id, lengths[message_id], ".")
                lengths[message_id] += 1
        return await state(*arguments, **named)

    monkeypatch.setattr(hub._log, "state", page_of_a_slow_reader)
    channel.raise_floor(1)
    async with client.app[DATABASE].transaction("test.retain") as connection:
        await connection.execute(text("UPDATE conversations SET floor_seq = 1"))
        await connection.execute(text("DELETE FROM events WHERE seq <= 1"))
    reader = Reader(hub, channel, 0)
    hub.attach(reader.stream)
    await _until(lambda: any(event == "ready" for event, _ in reader.events))
    assert pages < 20


@pytest.mark.parametrize("environment", [{"SWARM_STREAM_COMPARE": "60"}], ids=["nothing is compared"])
async def test_a_reader_that_comes_between_a_burst_and_its_first_slice_is_told_when_it_is_ready(client: Client) -> None:
    """It is given the same slice as the live ones, and then stands where they do; but it was promised more."""
    conversation_id = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation_id)
    live = Reader(hub, channel, 0)
    hub.attach(live.stream)
    await _until(lambda: live.subscriber in channel.live)
    for seq in range(1, 301):
        payload = b'{"text":"%b"}' % (b"." * 1_000)
        hub._hear(
            channel, seq, "message.updated", event_frame("message.updated", conversation_id, seq, payload, "e"), None
        )
    reader = Reader(hub, channel, 0)
    hub.attach(reader.stream)
    await _until(lambda: len(live.events) == 301 and len(reader.events) >= 300)
    await _until(lambda: reader.subscriber in channel.live)
    assert reader.events[-1] == ("ready", 300)
