"""The queue of appends is bounded: in number, in bytes, in time, and in what goes together."""

import asyncio

import pytest

from storage.config import CommitConfig
from storage.errors import QueueFull
from tests.storage.store import Json, Store, bounded, opened, until


async def _full(store: Store, conversation: str, posts: int) -> list[asyncio.Task[Json]]:
    """One append in flight, held, and so many that wait behind it."""
    store.gate.hold()
    tasks = [asyncio.create_task(store.post(conversation, "in flight"))]
    await store.gate.arrived()
    tasks += [asyncio.create_task(store.post(conversation, f"waiting {n}")) for n in range(posts)]
    await until(lambda: store.waiting == posts)
    return tasks


async def test_the_queue_is_bounded_in_appends(database_url: str) -> None:
    async with opened(database_url, committers=1, commit=CommitConfig(queue_appends=3)) as store:
        conversation = await store.conversation()
        tasks = await _full(store, conversation, 3)
        with pytest.raises(QueueFull):
            await store.post(conversation, "one too many")
        store.gate.release()
        await bounded(*tasks)
        await store.post(conversation, "room again")
        assert [message["content"] for message in await store.check(conversation)] == [
            "in flight",
            "waiting 0",
            "waiting 1",
            "waiting 2",
            "room again",
        ]


async def test_the_queue_is_bounded_in_bytes(database_url: str) -> None:
    async with opened(database_url, committers=1, commit=CommitConfig(queue_bytes=30_000)) as store:
        conversation = await store.conversation()
        tasks = await _full(store, conversation, 1)
        with pytest.raises(QueueFull):
            await store.post(conversation, "x" * 20_000)
        small = asyncio.create_task(store.post(conversation, "small"))
        await until(lambda: store.waiting == 2)
        store.gate.release()
        await bounded(*tasks, small)
        assert len(await store.check(conversation)) == 3
        assert store.commits._waiting_bytes == 0


async def test_an_append_that_waits_too_long_is_withdrawn_and_never_committed(database_url: str) -> None:
    async with opened(database_url, committers=1, commit=CommitConfig(queue_seconds=0.3)) as store:
        conversation, other = await store.conversation(), await store.conversation()
        tasks = await _full(store, conversation, 2)
        tasks.append(asyncio.create_task(store.post(other, "elsewhere")))
        await bounded(asyncio.wait(tasks))
        assert all(isinstance(task.exception(), QueueFull) for task in tasks)
        assert store.waiting == 0
        store.gate.release()
        await bounded(store.post(other, "next"))
        # The first was in flight already, which its client was not promised to be without effect.
        assert [message["content"] for message in await store.check(conversation)] == ["in flight"]
        assert [message["content"] for message in await store.check(other)] == ["next"]


async def test_groups_are_bounded_in_rows(database_url: str) -> None:
    async with opened(database_url, committers=1, commit=CommitConfig(group_rows=10)) as store:
        conversation = await store.conversation()
        tasks = await _full(store, conversation, 12)  # each is a message and an event
        store.gate.release()
        await bounded(*tasks)
        await bounded(store.post_many(conversation, ["more than a group"] * 20))
        assert [len(group) for group in store.gate.groups] == [1, 5, 5, 2, 1]
        assert len(await store.check(conversation)) == 33


async def test_groups_are_bounded_in_bytes(database_url: str) -> None:
    async with opened(database_url, committers=1, commit=CommitConfig(group_bytes=10_000)) as store:
        conversation = await store.conversation()
        store.gate.hold()
        tasks = [asyncio.create_task(store.post(conversation, "x" * 1_000)) for _ in range(8)]
        await store.gate.arrived()
        store.gate.release()
        await bounded(*tasks)
        assert max(map(len, store.gate.groups)) in {2, 3}
        assert len(await store.check(conversation)) == 8


async def test_closing_commits_what_is_queued(database_url: str) -> None:
    async with opened(database_url, committers=1) as store:
        conversation = await store.conversation()
        tasks = await _full(store, conversation, 3)
    await bounded(*tasks)
    async with opened(database_url) as store:
        assert len(await store.check(conversation)) == 4
