"""The hub with readers whose transports the test holds in its hands."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from events.channel import Channel
from events.conversation_stream import ConversationStream
from events.hub import Hub
from events.subscriber import Subscriber
from handlers.resources import DATABASE, HUB, LOG
from storage.errors import NotFound
from storage.housekeeping import Housekeeping
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
        self.stream = ConversationStream(hub, "", channel, position, chunked=False)
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
    assert not hub._fills
    with pytest.raises(NotFound):
        await log.delete_conversation(TENANT, conversation, key=None)


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
