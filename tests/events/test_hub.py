"""The hub with readers whose transports the test holds in its hands."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from events.bus import NoBus
from events.channel import Channel
from events.conversation_stream import ConversationStream
from events.hub import Hub
from events.multiplexed_stream import MultiplexedStream
from events.owner import Owner
from events.stream import Stream
from events.subscriber import Subscriber
from handlers.resources import DATABASE, HUB, LOG
from storage.errors import NotFound, StorageUnavailable
from storage.housekeeping import Housekeeping
from storage.retention import Retention
from storage.timeline import new_epoch
from tests.api import Client, new_conversation, post_messages

TENANT = "default"


class Reader(asyncio.Transport):
    """A transport that keeps what is written to it; full while `full` is set."""

    def __init__(self, hub: Hub, channel: Channel, position: int) -> None:
        super().__init__()
        self.data = b""
        self.size = 0  # what is said to be in the buffer
        self.fill_at: bytes | None = None  # pauses its writer once this was written
        self.closing = False
        self.aborted = False
        self.stream: Stream = ConversationStream(hub, Owner("", ("", "")), channel, position, chunked=False)
        self.stream.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closing
        self.data += bytes(data)
        if self.fill_at is not None and self.fill_at in self.data:
            self.fill_at = None
            self.size = len(data)
            self.stream.pause_writing()

    def drained(self) -> None:
        self.size = 0
        self.stream.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.size

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    @property
    def subscriber(self) -> Subscriber:
        [subscriber] = self.stream.subscribers
        return subscriber

    @property
    def events(self) -> list[tuple[str, Any]]:
        """`(event, seq)`, or `("ready", as_of)`."""
        found = []
        for frame in self.data.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in frame.split("\n") if ": " in line)
            if "event" in fields:
                data = msgspec.json.decode(fields["data"])
                found.append((fields["event"], data.get("seq", data.get("as_of"))))
        return found


async def _watch(hub: Hub, conversation: str) -> Channel:
    return (await hub.watch(TENANT, [conversation]))[conversation]


async def _until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def _purged(client: Client, conversation: str, messages: int) -> None:
    """Deletes the conversation behind the hub's back, and all that is left of it but its last event."""
    hub, channels = client.app[HUB], client.app[HUB].channels.copy()
    hub.channels.clear()  # as when another process deletes it: no commit tells this one
    await client.app[LOG].delete_conversation(TENANT, conversation, key=None)
    await Housekeeping(client.app[DATABASE]).sweep()
    page = await hub._log.page(TENANT, conversation, 0, limit=0, budget=0)
    assert (page.floor, page.head) == (messages, messages + 1)
    hub.channels.update(channels)


async def _posted_elsewhere(client: Client, conversation: str, count: int) -> None:
    """Messages of another process: no commit tells this one of them."""
    hub, channels = client.app[HUB], client.app[HUB].channels.copy()
    hub.channels.clear()
    await post_messages(client, conversation, count)
    hub.channels.update(channels)


async def test_a_reader_that_is_full_when_its_conversation_is_deleted_ends_once_it_has_drained(client: Client) -> None:
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    reader = Reader(hub, channel, 0)
    hub.attach(reader.stream)
    await _until(lambda: reader.subscriber in channel.live)
    reader.fill_at = b"conversation.deleted"
    await client.app[LOG].delete_conversation(TENANT, conversation, key=None)
    await _until(lambda: reader.stream.paused or reader.closing)
    reader.drained()
    await _until(lambda: reader.closing)
    assert reader.events == [("ready", 0), ("conversation.deleted", 1)]


async def test_a_reader_that_already_has_the_deletion_ends_when_the_hub_hears_of_it(client: Client) -> None:
    """It resumed after an event that the database has and the hub has not heard of yet."""
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    reader = Reader(hub, channel, 1)
    hub.attach(reader.stream)
    await _until(lambda: reader.events)
    await client.app[LOG].delete_conversation(TENANT, conversation, key=None)
    await _until(lambda: reader.closing)
    assert reader.events == [("ready", 1)]


async def test_ready_comes_before_what_happened_after_it_also_when_the_ring_was_dropped(client: Client) -> None:
    conversation = await new_conversation(client)
    first, second = await post_messages(client, conversation, 2)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    reader = Reader(hub, channel, 2)
    # Two deletions before the pump comes to the newcomer: the ring begins behind it.
    for message in (first, second):
        await client.app[LOG].delete(TENANT, message["id"], key=None)
    reader.subscriber.ready_at = 2
    hub.attach(reader.stream)
    await _until(lambda: len(reader.events) >= 3)
    assert reader.events == [("ready", 2), ("message.deleted", 3), ("message.deleted", 4)]


@pytest.mark.parametrize("environment", [{"SWARM_STREAM_COMPARE": "0.05"}], ids=["compared often"])
async def test_a_conversation_forgotten_while_its_reader_was_on_the_way_is_heard_all_the_same(client: Client) -> None:
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    del hub.channels[TENANT, conversation]  # the reader took longer than nobody's conversations are kept
    reader = Reader(hub, channel, 0)
    await post_messages(client, conversation, 1)
    hub.attach(reader.stream)
    await post_messages(client, conversation, 1)
    await _until(lambda: len(reader.events) >= 3)
    assert reader.events == [("ready", 0), ("message.created", 1), ("message.created", 2)]


async def test_two_channels_of_one_conversation_are_not_kept(client: Client) -> None:
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    forgotten = await _watch(hub, conversation)
    del hub.channels[TENANT, conversation]
    await _watch(hub, conversation)
    reader = Reader(hub, forgotten, 0)
    hub.attach(reader.stream)
    assert reader.closing
    assert b"event: drain" in reader.data
    assert not hub.streams


async def test_a_conversation_is_not_forgotten_right_after_somebody_asked_for_it(client: Client) -> None:
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    channel.idle_since -= hub.config.linger + 1
    assert await _watch(hub, conversation) is channel
    hub._forget_idle_channels()
    assert hub.channels[TENANT, conversation] is channel


@pytest.mark.parametrize("messages", [10, 700], ids=["within a page", "more than a page"])
async def test_the_end_of_a_conversation_that_was_purged_meanwhile_reaches_its_readers(
    client: Client, messages: int
) -> None:
    """Live ones, and one that is still catching up: another process deleted it, and its log is gone but for the end."""
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    live, behind = Reader(hub, channel, 0), Reader(hub, channel, 0)
    hub.attach(live.stream)
    await _until(lambda: live.subscriber in channel.live)
    log = client.app[LOG]
    hub.channels.clear()
    await post_messages(client, conversation, messages)
    hub.channels[TENANT, conversation] = channel
    await _purged(client, conversation, messages)
    behind.subscriber.ready_at = 3
    hub.attach(behind.stream)
    await _until(lambda: live.closing and behind.closing)
    assert live.events == [("ready", 0), ("conversation.deleted", messages + 1)]
    assert behind.events[-1] == ("conversation.deleted", messages + 1)
    assert not hub.holes.tasks
    with pytest.raises(NotFound):
        await log.delete_conversation(TENANT, conversation, key=None)


async def test_what_the_log_lost_while_a_frame_waited_for_it_silences_nobody(client: Client) -> None:
    """The frame came early: others had written before it, and retention took their events before they were read."""
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    reader = Reader(hub, channel, 0)
    hub.attach(reader.stream)
    await _until(lambda: reader.subscriber in channel.live)
    channel.filling = True  # nothing is read from the log for now
    await _posted_elsewhere(client, conversation, 2)
    await post_messages(client, conversation, 1)
    assert channel.early.keys() == {3}
    await Retention(client.app[DATABASE]).retain(before=None, keep=0, conversation_id=conversation)
    channel.filling = False
    hub.fill(channel)
    await _until(lambda: channel.last_seq == 3 and not channel.filling)
    await _posted_elsewhere(client, conversation, 1)
    await _until(lambda: ("message.created", 4) in reader.events)
    await post_messages(client, conversation, 1)
    await _until(lambda: ("message.created", 5) in reader.events)


async def test_one_who_comes_when_the_drain_has_begun_is_drained_too(client: Client) -> None:
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    hub.drain("shutdown")
    reader = Reader(hub, channel, 0)
    hub.attach(reader.stream)
    assert reader.closing
    assert b"event: drain" in reader.data


SHORT = {"SWARM_STREAM_PING": "1", "SWARM_STREAM_SEND_TIMEOUT": "2"}


@pytest.mark.parametrize("environment", [SHORT], ids=["short timeouts"])
async def test_a_reader_that_is_slow_is_not_one_that_takes_nothing(client: Client) -> None:
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    slow, stuck = Reader(hub, channel, 0), Reader(hub, channel, 0)
    for reader in (slow, stuck):
        reader.fill_at = b"ready"
        reader.size = 1_000_000
        hub.attach(reader.stream)
    await _until(lambda: slow.stream.paused and stuck.stream.paused)
    async with asyncio.timeout(20):
        while not stuck.aborted:
            slow.size -= 1
            await asyncio.sleep(0.01)
    assert not slow.closing


@pytest.mark.parametrize("environment", [SHORT], ids=["short timeouts"])
async def test_a_reader_that_never_takes_the_end_is_cut_off_too(client: Client) -> None:
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    reader = Reader(hub, channel, 0)
    reader.size = 1
    hub.attach(reader.stream)
    await client.app[LOG].delete_conversation(TENANT, conversation, key=None)
    await _until(lambda: reader.closing)
    assert not reader.aborted
    await _until(lambda: reader.aborted)


def _several(hub: Hub, channels: list[Channel], position: int) -> tuple[Reader, MultiplexedStream]:
    """A reader of several conversations, from the same seq of each. It is not attached yet."""
    reader = Reader(hub, channels[0], position)
    stream = MultiplexedStream(hub, Owner("", ("", "")), chunked=False, feed=False, slice_bytes=hub.config.slice_bytes)
    reader.stream = stream
    stream.connection_made(reader)
    stream.follow([Subscriber(stream, channel, position) for channel in channels])
    return reader, stream


async def _deleted_elsewhere(client: Client, conversation: str) -> None:
    hub, channels = client.app[HUB], client.app[HUB].channels.copy()
    hub.channels.clear()
    await client.app[LOG].delete_conversation(TENANT, conversation, key=None)
    hub.channels.update(channels)


async def test_a_conversation_that_the_new_timeline_has_not_makes_nobody_ready_before_the_reset(
    client: Client,
) -> None:
    """Its reader was catching up with that one alone: what it lacked was the last thing before `ready`."""
    gone, there = await new_conversation(client), await new_conversation(client)
    hub = client.app[HUB]
    channels = await hub.watch(TENANT, [gone, there])
    reader, stream = _several(hub, [channels[gone], channels[there]], 0)
    catching_up, live = stream.subscribers
    catching_up.catching_up = True
    hub.attach(stream)
    await _until(lambda: live in channels[there].live)
    await _deleted_elsewhere(client, gone)
    epoch = await asyncio.to_thread(new_epoch, client.app[DATABASE].config)
    await _until(lambda: b"event: ready" in reader.data)
    told = reader.data.decode()
    assert told.index("event: conversation.gone") < told.index("event: reset") < told.index("event: ready")
    assert told.index("event: reset") < told.index(f"@{epoch}")


async def test_a_reader_on_its_way_to_a_conversation_that_the_new_timeline_has_not_comes_back(client: Client) -> None:
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    reader = Reader(hub, channel, 0)
    await _deleted_elsewhere(client, conversation)
    hub._begin_anew([channel], "epoch")
    await _until(lambda: not hub._opening)
    hub.attach(reader.stream)
    assert reader.closing
    assert b"event: drain" in reader.data
    assert not hub.channels


async def test_a_reader_of_many_that_is_full_is_not_given_a_page_of_each(client: Client) -> None:
    """All of them catch up at once, and all but a few wait for a slot when its transport fills up."""
    conversations = [await new_conversation(client) for _ in range(20)]
    for conversation in conversations:
        body = [{"role": "user", "content": "x" * 10_000}] * 8
        assert (await client.post(f"/api/conversations/{conversation}/messages", json=body)).status == 201
    hub = client.app[HUB]
    hub.channels.clear()  # the rings are empty: all of it comes from the log
    channels = await hub.watch(TENANT, conversations)
    reader, stream = _several(hub, list(channels.values()), 0)
    reader.fill_at = b"message.created"
    hub.attach(stream)
    await _until(lambda: stream.paused)
    await _until(lambda: len(stream._waiters or ()) == len(hub._replay.tasks))
    assert len(reader.data) + stream._size < 10 * hub.config.slice_bytes
    reader.drained()
    await _until(lambda: b"event: ready" in reader.data)
    assert reader.data.count(b"event: message.created") == 8 * len(conversations)


async def test_readers_that_catch_up_do_not_delay_what_others_write(client: Client) -> None:
    """However many wait for their pages: what another process commits reaches the live ones."""
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    reader = Reader(hub, channel, 0)
    hub.attach(reader.stream)
    await _until(lambda: reader.subscriber in channel.live)
    slots = hub._replay._slots
    while not slots.locked():
        await slots.acquire()  # by those who catch up
    await _posted_elsewhere(client, conversation, 1)
    await _until(lambda: ("message.created", 1) in reader.events)


async def test_whatever_keeps_a_new_timeline_from_being_read_it_is_tried_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = await new_conversation(client)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation)
    reader = Reader(hub, channel, 0)
    hub.attach(reader.stream)
    heads, failures = hub._log.heads, [RuntimeError("not foreseen")]

    async def fail_once(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return await heads(*arguments)

    monkeypatch.setattr(hub._log, "heads", fail_once)
    hub._begin_anew([channel], "epoch")
    await _until(lambda: ("reset", 0) in reader.events)


async def test_a_reader_waits_for_a_conversation_that_others_open_for_a_bounded_time(client: Client) -> None:
    """As when a new timeline is read while the database is away."""
    hub = client.app[HUB]
    conversation = await new_conversation(client)
    await _watch(hub, conversation)
    hub.config = replace(hub.config, opening=0.05)
    never = asyncio.create_task(asyncio.Event().wait())
    hub._opening["default", conversation] = never  # type: ignore[assignment]
    try:
        with pytest.raises(StorageUnavailable):
            await hub.watch("default", [conversation])
        assert not never.done()  # others still wait for it
    finally:
        never.cancel()
        del hub._opening["default", conversation]
    assert await hub.watch("default", [conversation])


@pytest.mark.parametrize("environment", [{"SWARM_STREAM_COMPARE": "60"}], ids=["hardly compared"])
async def test_a_hole_that_opens_while_another_one_is_filled_is_filled_as_soon(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = client.app[HUB]
    conversation = await new_conversation(client)
    channel = await _watch(hub, conversation)
    page, read, go_on = hub._log.page, asyncio.Event(), asyncio.Event()

    async def held_back(*arguments: Any, **options: Any) -> Any:
        found = await page(*arguments, **options)
        read.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(hub._log, "page", held_back)
    await _posted_elsewhere(client, conversation, 1)
    await post_messages(client, conversation, 1)
    async with asyncio.timeout(20):
        await read.wait()
    await _posted_elsewhere(client, conversation, 1)
    await post_messages(client, conversation, 1)
    assert channel.early.keys() == {2, 4}
    go_on.set()
    await _until(lambda: channel.last_seq == 4)


class _Said(NoBus):
    """A bus that others hear: keeps what is said, and under which epoch."""

    live = True

    def __init__(self) -> None:
        self.epoch = ""
        self.said: list[tuple[str, str]] = []

    def begin(self, epoch: str) -> None:
        self.epoch = epoch

    def publish(self, topic: str, data: bytes) -> None:
        self.said.append((self.epoch, topic))


async def test_the_first_thing_that_a_process_says_is_said_under_the_database_s_epoch(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, epoch = client.app[HUB], client.app[DATABASE].epoch
    first, second = _Said(), _Said()
    hub.epoch = ""
    monkeypatch.setattr(hub, "bus", first)
    conversation = await new_conversation(client)
    assert first.said == [(epoch, f"{TENANT}/")]
    hub.epoch = ""
    monkeypatch.setattr(hub, "bus", second)
    monkeypatch.setattr(client.app[DATABASE], "epoch", "")
    await post_messages(client, conversation, 1)
    assert second.said == [(epoch, f"{TENANT}/"), (epoch, f"{TENANT}/{conversation}")]
