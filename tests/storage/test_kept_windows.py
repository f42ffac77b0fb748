"""Windows that are served from memory: only as they are now, whoever has written meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from storage.errors import NotFound
from storage.records import Window
from storage.timeline import new_epoch
from storage.windows import Anchor
from tests.storage.store import TENANT, Store, bounded, opened, replayed, shown
from tests.storage.streaming import stream
from tests.storage.test_database import Recorder

ANCHOR, LIMIT = Anchor("from", 1), 50
WINDOW, VERSION = ("messages.window", None), ("conversations.versions", None)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def reading(database_url: str, recorder: Recorder) -> AsyncIterator[Store]:
    """Keeps windows."""
    async with opened(database_url, observer=recorder, cache_bytes=2**20) as store:
        yield store


@pytest.fixture
async def writing(database_url: str) -> AsyncIterator[Store]:
    """Another process, as it were."""
    async with opened(database_url) as store:
        yield store


async def _read(store: Store, conversation: str, tenant: str = TENANT) -> list[dict[str, object]]:
    return shown(await store.windows.read(tenant, conversation, ANCHOR, LIMIT))


async def _append(store: Store, conversation: str, message: str) -> None:
    await store.post(conversation, "another")


async def _edit(store: Store, conversation: str, message: str) -> None:
    await store.edit(message, "edited")


async def _delete(store: Store, conversation: str, message: str) -> None:
    await store.writes.delete(TENANT, message, key=None)


@pytest.mark.parametrize("write", [_append, _edit, _delete])
async def test_a_read_after_an_acknowledged_write_shows_it(
    reading: Store,
    writing: Store,
    recorder: Recorder,
    write: Callable[[Store, str, str], Awaitable[None]],
) -> None:
    conversation = await writing.conversation()
    first, *_ = await writing.post_many(conversation, ["one", "two", "three"])
    before = await _read(reading, conversation)
    assert await _read(reading, conversation) == before
    await write(writing, conversation, first["id"])
    recorder.take()
    after = await _read(reading, conversation)
    assert after != before
    assert after == await _read(writing, conversation)
    assert recorder.take() == [VERSION, WINDOW]
    assert await _read(reading, conversation) == after
    assert recorder.take() == [VERSION]


async def test_a_message_that_streams_is_read_anew_until_it_is_finished(
    reading: Store, writing: Store, recorder: Recorder
) -> None:
    conversation = await writing.conversation()
    message = await stream(writing, conversation)
    for text in ("Hel", "lo"):
        await message.add(text)
        for _ in range(2):
            [found] = await _read(reading, conversation)
            assert (found["content"], found["status"]) == (message.text, "streaming")
    assert recorder.take() == [WINDOW] * 4
    await message.finish()
    for _ in range(2):
        [found] = await _read(reading, conversation)
        assert (found["content"], found["status"]) == ("Hello", "complete")
    assert recorder.take() == [WINDOW, VERSION]


async def test_a_window_without_messages_is_not_kept(reading: Store, recorder: Recorder) -> None:
    conversation = await reading.conversation()
    recorder.take()
    for _ in range(3):
        assert await _read(reading, conversation) == []
    assert recorder.take() == [WINDOW] * 3


async def test_many_readers_of_many_conversations_share_one_query(
    reading: Store, writing: Store, recorder: Recorder
) -> None:
    conversations = [await writing.conversation() for _ in range(5)]
    for conversation in conversations:
        await writing.post(conversation, conversation)
        await _read(reading, conversation)
    recorder.take()
    windows = await bounded(*[_read(reading, conversation) for conversation in conversations * 20])
    assert [window[0]["content"] for window in windows] == conversations * 20
    assert recorder.take() == [VERSION]


async def test_what_memory_has_not_costs_one_query(reading: Store, writing: Store, recorder: Recorder) -> None:
    conversation = await writing.conversation()
    await writing.post_many(conversation, [str(number) for number in range(20)])
    anchors = [Anchor(kind, 9) for kind in ("newest", "from", "before", "after", "around")]
    for limit in (3, 4):
        for anchor in anchors:
            kept = [await reading.windows.read(TENANT, conversation, anchor, limit) for _ in range(2)]
            assert recorder.take() == [WINDOW, VERSION]
            assert kept[0] == kept[1] == await writing.windows.read(TENANT, conversation, anchor, limit)


async def test_a_new_timeline_outdates_what_is_kept(reading: Store, writing: Store) -> None:
    conversation = await writing.conversation()
    await writing.post(conversation, "of the old timeline")
    await _read(reading, conversation)
    # A backup was restored, and its seqs have been issued again: the conversation's last one is the same.
    await writing.execute("UPDATE messages SET content = 'of the new one'")
    assert [message["content"] for message in await _read(reading, conversation)] == ["of the old timeline"]
    await asyncio.to_thread(new_epoch, writing.database.config)
    assert [message["content"] for message in await _read(reading, conversation)] == ["of the new one"]


async def test_a_deleted_conversation_is_not_found_and_nothing_of_it_is_kept(reading: Store, writing: Store) -> None:
    conversation = await writing.conversation()
    await writing.post_many(conversation, ["one", "two"])
    for limit in (1, 2, 3):
        await reading.windows.read(TENANT, conversation, ANCHOR, limit)
    await writing.writes.delete_conversation(TENANT, conversation, key=None)
    for _ in range(2):
        with pytest.raises(NotFound):
            await reading.windows.read(TENANT, conversation, ANCHOR, 1)
        assert len(reading.windows._cache) == 0


async def test_what_is_kept_for_one_tenant_is_not_found_by_another(
    reading: Store, writing: Store, recorder: Recorder
) -> None:
    conversation = await writing.conversation()
    await writing.post(conversation, "secret")
    found = await _read(reading, conversation)
    for _ in range(2):
        recorder.take()
        with pytest.raises(NotFound):
            await _read(reading, conversation, tenant="another")
        assert await _read(reading, conversation) == found
        assert recorder.take() == [WINDOW, VERSION]


async def test_with_no_bytes_every_window_is_read(database_url: str) -> None:
    recorder = Recorder()
    async with opened(database_url, observer=recorder, cache_bytes=0) as store:
        conversation = await store.conversation()
        await store.post(conversation, "text")
        recorder.take()
        for _ in range(3):
            assert len(await _read(store, conversation)) == 1
        assert recorder.take() == [WINDOW] * 3


async def test_windows_are_true_and_never_behind_what_is_acknowledged_while_others_write(
    reading: Store, writing: Store
) -> None:
    conversation = await writing.conversation()
    messages = await writing.post_many(conversation, [str(number) for number in range(8)])
    acknowledged = 8
    ended = False
    windows: list[Window] = []

    async def write() -> None:
        nonlocal acknowledged
        for turn in itertools.count():
            if ended:
                return
            if turn % 3:
                await writing.edit(random.choice(messages)["id"], f"edited {turn}")
            else:
                await writing.post(conversation, str(turn))
            acknowledged += 1
            await asyncio.sleep(random.random() / 100)  # so that some of what is kept is served, too

    async def read(number: int) -> None:
        for turn in itertools.count():
            from_memory = len(windows) - len({id(window) for window in windows})
            if len(windows) >= 400 and from_memory and windows[-1].as_of > 8:
                return
            least = acknowledged
            windows.append(await reading.windows.read(TENANT, conversation, Anchor("from", 1 + (number + turn) % 2), 5))
            assert windows[-1].as_of >= least

    writer = asyncio.create_task(write())
    try:
        await bounded(*map(read, range(8)))
    finally:
        ended = True
        await bounded(writer)
    events = await writing.events(conversation)
    for window in windows:
        assert shown(window) == replayed(events[: window.as_of])[window.first - 1 :][:5]
