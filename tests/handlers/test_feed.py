"""The feed of the tenant's lists, as its readers see it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from events.conversation_log import Draft
from handlers.resources import CONVERSATIONS, DATABASE, HUB, LOG
from server import settings
from server.app import create_app
from storage.conversations import Conversations
from storage.records import EMPTY_OBJECT
from tests.api import Client, new_conversation
from tests.feed_reader import HeldList
from tests.served import Served
from tests.sse_reader import Frame, SseReader

Json = dict[str, Any]


@asynccontextmanager
async def _feed(client: Client, query: str = "") -> AsyncIterator[SseReader]:
    assert client.port is not None
    async with SseReader(client.host, client.port, f"/api/events{query}") as reader:
        assert reader.status == 200
        yield reader


async def _post(client: Client, conversation_id: str, *texts: str) -> None:
    body = [{"role": "user", "content": text} for text in texts]
    answer = await client.post(f"/api/conversations/{conversation_id}/messages", json=body)
    assert answer.status == 201, await answer.text()


async def _get(client: Client, conversation_id: str) -> Json:
    found: Json = await (await client.get(f"/api/conversations/{conversation_id}")).json()
    return found


async def _list(client: Client) -> list[Json]:
    """The whole list, page by page."""
    items: list[Json] = []
    cursor = ""
    while True:
        page = await (await client.get(f"/api/conversations?limit=10{cursor}")).json()
        items += page["items"]
        if page["next"] is None:
            return items
        cursor = f"&cursor={page['next']}"


async def _state(reader: SseReader) -> Json:
    """The next state of a conversation."""
    frame = await reader.event()
    assert (frame.event, frame.id) == ("feed.conversation", None)
    state: Json = frame.json["conversation"]
    return state


async def _state_as_of(reader: SseReader, as_of: int) -> Json:
    """The first state that is as of this seq; those before it may come, and may be left out."""
    while (state := await _state(reader))["as_of"] < as_of:
        pass
    return state


async def _play(reader: SseReader, held: HeldList, done: Callable[[], Awaitable[bool]]) -> None:
    """Plays the feed until `done`, which is asked after each frame and when nothing comes."""
    async with asyncio.timeout(30):
        while not await done():
            frame: Frame | None = None
            try:
                frame = await reader.frame(0.25)
            except TimeoutError:
                continue
            await held.take(frame)


async def test_it_begins_with_a_ready_that_has_no_id(client: Client) -> None:
    await new_conversation(client, title="there already")
    async with _feed(client) as reader:
        assert (await reader.frame()).retry is not None
        assert (await reader.frame()).lines == ("event: ready", 'data: {"as_of":{}}')


async def test_what_changes_in_the_list_comes_as_whole_states(client: Client) -> None:
    async with _feed(client) as reader:
        await reader.until("ready")
        conversation_id = await new_conversation(client, title="new", metadata={"a": 1})
        made = await _get(client, conversation_id)
        assert (await reader.frame()).lines == (
            "event: feed.conversation",
            f"data: {json.dumps({'conversation': made}, separators=(',', ':'))}",
        )
        await _post(client, conversation_id, "a", "b")
        state = await _state_as_of(reader, 2)
        assert state == await _get(client, conversation_id)
        assert (state["message_count"], state["title"]) == (2, "new")
        assert (await client.patch(f"/api/conversations/{conversation_id}", json={"title": "renamed"})).status == 200
        state = await _state_as_of(reader, 3)
        assert state == await _get(client, conversation_id)
        assert state["title"] == "renamed"
        assert (await client.delete(f"/api/conversations/{conversation_id}")).status == 204
        assert (await reader.frame()).lines == (
            "event: feed.conversation.deleted",
            f'data: {{"conversation_id":"{conversation_id}"}}',
        )


async def test_another_tenants_changes_do_not_come(client: Client) -> None:
    async with _feed(client) as reader:
        await reader.until("ready")
        made = await client.app[CONVERSATIONS].create("other", "theirs", EMPTY_OBJECT, None)
        foreign = str(json.loads(made.body)["id"])
        await client.app[LOG].post("other", foreign, [Draft("user", "theirs")], many=False, key=None)
        # Touched by a mistake, it would still not be shown.
        client.app[HUB].feeds.touch("default", foreign)
        await client.app[LOG].delete_conversation("other", foreign, key=None)
        # Two looks at what other processes have done, in which it could come up, have passed when the second one comes.
        for title in ("ours", "ours, too"):
            await asyncio.sleep(client.app[HUB].config.compare * 2)
            await new_conversation(client, title=title)
            assert (await _state(reader))["title"] == title


async def test_a_stream_of_conversations_has_no_feed_unless_it_asks(client: Client) -> None:
    followed = await new_conversation(client)
    for query, feed in (("", False), ("&feed=false", False), ("&feed=true", True)):
        async with _feed(client, f"?conversations={followed}{query}") as reader:
            await reader.until("cursor")
            await new_conversation(client, title="elsewhere")
            await _post(client, followed, "here")
            seen = [await reader.event()]
            while not any(frame.event == "message.created" for frame in seen) or (
                feed and len([frame for frame in seen if frame.event == "feed.conversation"]) < 2
            ):
                seen.append(await reader.event())
            assert any(frame.event.startswith("feed.") for frame in seen) == feed


async def test_without_conversations_feed_false_is_the_feed_all_the_same(client: Client) -> None:
    async with _feed(client, "?feed=false") as reader:
        await reader.until("ready")
        conversation_id = await new_conversation(client)
        assert (await _state(reader))["id"] == conversation_id


async def test_beside_conversations_each_write_of_it_ends_with_the_cursor(client: Client) -> None:
    followed, other = await new_conversation(client), await new_conversation(client)
    epoch = client.app[DATABASE].epoch
    async with _feed(client, f"?conversations={followed}:0&feed=true") as reader:
        frames = await reader.until("cursor")
        assert frames[-2].event == "ready"
        assert frames[-2].json == {"as_of": {followed: 0}}
        await _post(client, followed, "a")
        await _post(client, other, "b")
        states: dict[str, int] = {}
        created = 0
        while states != {followed: 1, other: 1} or not created:
            *frames, cursor = await reader.until("cursor")
            created += sum(frame.event == "message.created" for frame in frames)
            states |= {
                frame.json["conversation"]["id"]: frame.json["conversation"]["as_of"]
                for frame in frames
                if frame.event == "feed.conversation"
            }
            assert all(frame.id is None for frame in frames)
            assert cursor.id == f"{created}@{epoch}"


async def test_what_another_process_changes_comes_too(client: Client, database_url: str) -> None:
    """Two servers on one database, nothing between them but the database."""
    there_already = await new_conversation(client, title="there already")
    other_app = create_app(settings.load({"DATABASE_URL": database_url}))
    async with TestClient(Served(other_app)) as other:
        await other_app[DATABASE].wait_until_ready()
        async with _feed(client) as reader:
            await reader.until("ready")
            made = await new_conversation(other, title="there")
            assert (await _state(reader))["id"] == made
            await _post(other, there_already, "a", "b")
            assert (await _state(reader))["message_count"] == 2
            assert (await other.patch(f"/api/conversations/{made}", json={"title": "x"})).status == 200
            assert (await _state(reader))["title"] == "x"
            await other.delete(f"/api/conversations/{made}")
            frame = await reader.event()
            assert (frame.event, frame.json) == ("feed.conversation.deleted", {"conversation_id": made})


async def test_a_burst_of_deltas_yields_few_states_and_the_last_one_says_it_all(client: Client) -> None:
    """Goes red when what is touched while the feed reads its states is told at once, too: then it never pauses."""
    conversation_id = await new_conversation(client)
    writers, deltas = 4, 60
    loop = asyncio.get_running_loop()

    async def write() -> None:
        path = f"/api/conversations/{conversation_id}/messages"
        message = await (await client.post(path, json={"role": "user", "status": "streaming"})).json()
        for n in range(deltas):
            posted = await client.post(f"/api/messages/{message['id']}/deltas", json={"offset": n, "text": "x"})
            assert posted.status == 200

    async with _feed(client) as reader:
        await reader.until("ready")
        begun = loop.time()
        await asyncio.gather(*(write() for _ in range(writers)))
        took = loop.time() - begun
        states = [await _state(reader)]
        while states[-1]["as_of"] < writers * (deltas + 1):
            states.append(await _state(reader))
        # One at once, one after each pause, and one for what came last.
        assert len(states) <= 2 + took / client.app[HUB].config.feed
        assert states[-1] == await _get(client, conversation_id)


class _Held:
    """Lets a call of storage through only when it is told to."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call
        self.arrived = asyncio.Event()
        self.free = asyncio.Event()

    async def __call__(self, *arguments: Any) -> Any:
        found = await self._call(*arguments)
        self.arrived.set()  # with what it has read so far
        await self.free.wait()
        return found


async def test_a_change_between_subscribing_and_ready_is_in_the_list_or_in_the_feed(
    client: Client, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goes red when the feed is joined after the connection was made, or what it knows was read before it listens."""
    ours, theirs = await new_conversation(client), await new_conversation(client)
    other_app = create_app(settings.load({"DATABASE_URL": database_url}))
    async with TestClient(Served(other_app)) as other:
        await other_app[DATABASE].wait_until_ready()
        feeds = client.app[HUB].feeds
        look = _Held(feeds._conversations.touched)
        monkeypatch.setattr(feeds._conversations, "touched", look)
        assert client.port is not None
        reader = SseReader(client.host, client.port, "/api/events")
        opening = asyncio.create_task(reader.open())
        async with asyncio.timeout(10):
            await look.arrived.wait()
        # Its first look at the lists has been taken, and is not known yet.
        await _post(client, ours, "by this process")
        await _post(other, theirs, "by another")
        made = await new_conversation(other, title="new")
        look.free.set()
        async with asyncio.timeout(10):
            await opening
        held = HeldList(lambda: _list(client))
        while not held.ready:
            frame = await reader.frame()
            if frame.event == "ready":
                await _post(client, ours, "once more, before the list is read")
            await held.take(frame)
        assert {made, ours, theirs} <= held.conversations.keys()
        await _post(client, ours, "after it")
        await _post(other, theirs, "after it")
        await _play(reader, held, lambda: _agrees(client, held))
        reader.close()


async def _agrees(client: Client, held: HeldList) -> bool:
    return held.conversations == {item["id"]: item for item in await _list(client)}


async def test_who_reads_the_lists_at_ready_ends_with_what_is_stored_while_all_of_it_changes(
    client: Client, database_url: str
) -> None:
    """Readers join at any time, while two processes create, append to, rename and delete conversations."""
    other_app = create_app(settings.load({"DATABASE_URL": database_url}))
    stop = asyncio.Event()

    async def change(through: Client) -> None:
        mine: list[str] = []
        for n in range(25):
            mine.append(await new_conversation(through, title=str(n)))
            await _post(through, mine[n // 2], *map(str, range(n % 3 + 1)))
            await through.patch(f"/api/conversations/{mine[-1]}", json={"title": f"{n} renamed"})
            if n % 4 == 3:
                await through.delete(f"/api/conversations/{mine[n - 1]}")
                mine[n - 1] = mine[n]

    async def read(through: Client, delay: float) -> HeldList:
        held = HeldList(lambda: _list(through))
        await asyncio.sleep(delay)  # joins in the middle, and not all at once

        async def done() -> bool:
            return stop.is_set() and held.ready > 0 and await _agrees(through, held)

        async with _feed(through) as reader:
            await _play(reader, held, done)
        return held

    async with TestClient(Served(other_app)) as other:
        await other_app[DATABASE].wait_until_ready()
        async with asyncio.TaskGroup() as tasks:
            changes = [tasks.create_task(change(through)) for through in (client, other)]
            reads = [tasks.create_task(read(through, n * 0.15)) for n in range(4) for through in (client, other)]
            await asyncio.wait(changes)
            stop.set()
    assert all(task.result().states for task in reads[:2]), "they did not live by their lists alone"


async def test_a_reader_that_was_full_gets_another_ready(client: Client) -> None:
    """What finds its stream full is left out, and a new `ready` makes up for it."""
    conversation_id = await new_conversation(client)
    async with _feed(client) as reader:
        await reader.until("ready")
        hub = client.app[HUB]
        [bucket] = [bucket for bucket in hub._streams._buckets if bucket]
        [stream] = bucket
        stream.pause_writing()
        await _post(client, conversation_id, "left out")
        await _told(client)
        stream.resume_writing()
        held = HeldList(lambda: _list(client))
        frame = await reader.event()
        assert (frame.event, frame.json, frame.id) == ("ready", {"as_of": {}}, None)
        await held.take(frame)
        assert held.conversations[conversation_id]["as_of"] == 1
        await _post(client, conversation_id, "not left out")
        assert (await _state(reader))["as_of"] == 2


async def test_beside_conversations_it_gets_another_ready_with_where_it_stands(client: Client) -> None:
    followed = await new_conversation(client)
    epoch = client.app[DATABASE].epoch
    async with _feed(client, f"?conversations={followed}:0&feed=true") as reader:
        await reader.until("ready")
        hub = client.app[HUB]
        [bucket] = [bucket for bucket in hub._streams._buckets if bucket]
        [stream] = bucket
        await reader.until("cursor")
        stream.pause_writing()
        await _post(client, followed, "a")
        await _told(client)
        stream.resume_writing()
        frames = await reader.until("ready")
        if frames[-1].json == {"as_of": {followed: 0}}:  # the pump may be a turn behind
            assert frames[-1].id == f"0@{epoch}"
            frames += await reader.until("message.created")
        else:
            assert [frame.event for frame in frames if frame.event != "cursor"] == ["message.created", "ready"]
            assert frames[-1].json == {"as_of": {followed: 1}}
            assert frames[-1].id == f"1@{epoch}"


async def _told(client: Client) -> None:
    """Waits until the feed has told all that was touched."""
    feeds = client.app[HUB].feeds
    async with asyncio.timeout(10):
        while any(feed.touched for feed in feeds._feeds.values()):
            await asyncio.sleep(0.01)
        # What was taken from there is on its way to the readers.
        await Conversations(client.app[DATABASE]).states("default", [])
        await asyncio.sleep(client.app[HUB].config.feed)


async def test_a_database_that_is_away_for_a_while_costs_the_feed_nothing(client: Client) -> None:
    conversation_id = await new_conversation(client)
    async with _feed(client) as reader:
        await reader.until("ready")
        database = client.app[DATABASE]
        database._ready.clear()
        client.app[HUB].feeds.touch("default", conversation_id)
        await asyncio.sleep(client.app[HUB].config.feed * 2)  # it tries meanwhile, in vain
        database._ready.set()
        assert (await _state(reader))["id"] == conversation_id
