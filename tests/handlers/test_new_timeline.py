"""The log gets a new epoch under live streams, as after a restored backup: what readers are told, and when.

A reader may be cut behind any id and come back with it. So no id of the new timeline may come before the `reset` that
declares the old one void: with the seqs of the old one it would look valid.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from events.event_id import NOWHERE, EventId, parse_vector_id
from handlers.resources import DATABASE, HUB
from storage.timeline import new_epoch
from tests.api import Client, new_conversation, post_messages
from tests.sse_reader import Frame, SseReader


@asynccontextmanager
async def _stream(client: Client, target: str, **headers: str) -> AsyncIterator[SseReader]:
    assert client.port is not None
    async with SseReader(client.host, client.port, target, headers) as reader:
        yield reader


async def _new_epoch(client: Client) -> str:
    return await asyncio.to_thread(new_epoch, client.app[DATABASE].config)


async def _noticed(client: Client, epoch: str) -> None:
    async with asyncio.timeout(10):
        while client.app[HUB].epoch != epoch:
            await asyncio.sleep(0.01)


class _Held:
    """Lets a call of storage through only when it is told to."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call
        self.arrived = asyncio.Event()
        self.free = asyncio.Event()

    async def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.arrived.set()
        await self.free.wait()
        return await self._call(*arguments, **named)


async def _until_ready_again(reader: SseReader, epoch: str) -> list[Frame]:
    """What comes up to the first `ready` of that epoch, without the cursors behind it."""
    frames: list[Frame] = []
    while not (frames and frames[-1].event == "ready" and (frames[-1].id or "").endswith(f"@{epoch}")):
        frames.append(await reader.event())
    return frames


def _has_no_early_id(frames: list[Frame], epoch: str) -> bool:
    """Whether no id of that epoch comes before a reset."""
    kinds = [frame.event for frame in frames]
    before = frames[: kinds.index("reset")] if "reset" in kinds else frames
    return not any((frame.id or "").endswith(f"@{epoch}") for frame in before)


async def test_a_live_reader_is_reset_and_goes_on_under_the_new_epoch(client: Client) -> None:
    a = await new_conversation(client)
    await post_messages(client, a, 2)
    async with _stream(client, f"/api/conversations/{a}/events?after=0") as reader:
        await reader.until("ready")
        epoch = await _new_epoch(client)
        reset, ready = await reader.until("ready")
        assert (reset.event, reset.json, reset.id) == ("reset", {"reason": "epoch", "as_of": 2}, None)
        assert (ready.json, ready.id) == ({"as_of": 2}, f"2@{epoch}")
        await post_messages(client, a, 1)
        assert (await reader.event()).id == f"3@{epoch}"


@pytest.mark.parametrize("environment", [{"SWARM_STREAM_COMPARE": "60"}], ids=["nothing is compared"])
async def test_the_first_commit_of_the_new_timeline_tells_of_it(client: Client) -> None:
    """Goes red when what is committed is given to readers whatever its epoch is."""
    a = await new_conversation(client)
    await post_messages(client, a, 2)
    async with _stream(client, f"/api/conversations/{a}/events?after=0") as reader:
        await reader.until("ready")
        epoch = await _new_epoch(client)
        await post_messages(client, a, 1)
        reset, ready = await reader.until("ready")
        assert (reset.event, reset.json) == ("reset", {"reason": "epoch", "as_of": 3})
        assert ready.id == f"3@{epoch}"


@pytest.mark.parametrize("feed", ["", "&feed=true"], ids=["alone", "with the feed"])
async def test_of_several_conversations_each_is_reset_before_any_new_id(client: Client, feed: str) -> None:
    a, b = await new_conversation(client), await new_conversation(client)
    await post_messages(client, a, 2)
    async with _stream(client, f"/api/events?conversations={a}:0,{b}:0{feed}") as reader:
        await reader.until("ready")
        epoch = await _new_epoch(client)
        frames = await _until_ready_again(reader, epoch)
        assert _has_no_early_id(frames, epoch)
        void: dict[str, int] = {}
        for frame in frames:
            if frame.event == "reset":
                assert frame.json["reason"] == "epoch"
                void |= frame.json["as_of"]
        assert void == {a: 2, b: 0}
        assert (frames[-1].json, frames[-1].id) == ({"as_of": {a: 2, b: 0}}, f"2.0@{epoch}")
        await post_messages(client, b, 1)
        while (frame := await reader.event()).event != "message.created":
            assert frame.id in {None, f"2.0@{epoch}"}
        assert (await reader.until("cursor"))[-1].id == f"2.1@{epoch}"


async def test_a_reader_of_the_feed_is_told_to_read_its_lists_again(client: Client) -> None:
    async with _stream(client, "/api/events") as reader:
        await reader.until("ready")
        await _new_epoch(client)
        assert (await reader.event()).lines == ("event: ready", 'data: {"as_of":{}}')
        made = await new_conversation(client)
        assert (await reader.event()).json["conversation"]["id"] == made


async def test_what_the_feed_tells_while_the_new_timeline_is_being_read_moves_no_cursor(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goes red when a cursor, or a `ready`, is written between the change of the epoch and the reset."""
    a = await new_conversation(client)
    await post_messages(client, a, 2)
    hub = client.app[HUB]
    async with _stream(client, f"/api/events?conversations={a}:0&feed=true") as reader:
        await reader.until("ready")
        heads = _Held(hub._log.heads)
        monkeypatch.setattr(hub._log, "heads", heads)
        epoch = await _new_epoch(client)
        await _noticed(client, epoch)
        async with asyncio.timeout(10):
            await heads.arrived.wait()
        made = await new_conversation(client)
        frames = [await reader.event()]
        while not (frames[-1].event == "feed.conversation" and frames[-1].json["conversation"]["id"] == made):
            frames.append(await reader.event())
        heads.free.set()
        frames += await _until_ready_again(reader, epoch)
        assert _has_no_early_id(frames, epoch)
        assert "reset" in [frame.event for frame in frames]


async def test_a_reader_that_is_cut_while_the_timeline_changes_is_reset_when_it_comes_back(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await new_conversation(client)
    await post_messages(client, a, 2)
    hub = client.app[HUB]
    target = f"/api/events?conversations={a}:0&feed=true"
    last = ""
    async with _stream(client, target) as reader:
        for frame in await reader.until("ready"):
            last = frame.id or last
        heads = _Held(hub._log.heads)
        monkeypatch.setattr(hub._log, "heads", heads)
        await _noticed(client, await _new_epoch(client))
        made = await new_conversation(client)
        while (frame := await reader.event()).event != "feed.conversation":
            last = frame.id or last
        while frame.json["conversation"]["id"] != made:
            frame = await reader.event()
            last = frame.id or last
    heads.free.set()
    async with _stream(client, target, **{"Last-Event-ID": last}) as reader:
        reset = (await reader.until("ready"))[0]
        assert (reset.event, reset.json) == ("reset", {"reason": "epoch", "as_of": {a: 2}})


async def test_a_timeline_that_changes_while_a_reader_is_on_its_way_resets_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goes red when a place that was found in the old timeline is taken for one in the new."""
    a, b = await new_conversation(client), await new_conversation(client)
    for conversation_id in (a, b):
        await post_messages(client, conversation_id, 3)
    hub = client.app[HUB]
    async with _stream(client, f"/api/events?conversations={a},{b}") as known:
        await known.until("ready")
        # The reader's places are found; it waits for the feed.
        touched = _Held(hub.feeds._conversations.touched)
        monkeypatch.setattr(hub.feeds._conversations, "touched", touched)
        assert client.port is not None
        target = f"/api/events?conversations={a}:1,{b}:2&feed=true"
        reader = SseReader(client.host, client.port, target)
        opening = asyncio.create_task(reader.open())
        async with asyncio.timeout(10):
            await touched.arrived.wait()
        epoch = await _new_epoch(client)
        # The hub's comparison may be waiting for the feed, too; a commit tells it as well.
        await post_messages(client, a, 1)
        await _noticed(client, epoch)
        await known.until("reset")
        touched.free.set()
        async with asyncio.timeout(10):
            await opening
        frames = await _until_ready_again(reader, epoch)
        reader.close()
        void: dict[str, int] = {}
        for frame in frames:
            if frame.event == "reset":
                void |= frame.json["as_of"]
        assert set(void) == {a, b}
        assert _has_no_early_id(frames, epoch)
        assert not any(frame.event == "message.created" and frame.json["seq"] < 4 for frame in frames)


async def test_the_place_in_a_conversation_that_is_gone_is_not_told_under_the_new_epoch(client: Client) -> None:
    """The backup may be older than its deletion: then it is there again, and the seq would look valid."""
    gone, there = await new_conversation(client), await new_conversation(client)
    for conversation_id in (gone, there):
        await post_messages(client, conversation_id, 2)
    path = f"/api/events?conversations={gone}:2,{there}:2"
    async with _stream(client, path) as reader:
        await reader.until("ready")
        assert (await client.delete(f"/api/conversations/{gone}")).status == 204
        await reader.until("conversation.deleted")
        assert (await reader.until("cursor"))[-1].id == f"3.2@{client.app[HUB].epoch}"
        epoch = await _new_epoch(client)
        *_, ready = await _until_ready_again(reader, epoch)
    ids = parse_vector_id(ready.id or "", 2)
    assert ids == [EventId(NOWHERE, epoch), EventId(2, epoch)]
    # As the backup has it: with the conversation.
    other = await new_conversation(client)
    path = f"/api/events?conversations={other},{there}"
    async with _stream(client, path, **{"Last-Event-ID": ready.id or ""}) as reader:
        reset, *_ = await reader.until("ready")
        assert (reset.event, reset.json) == ("reset", {"reason": "ahead", "as_of": {other: 0}})
