"""Which groups the group commit makes: what waits for others, and what does not."""

import asyncio

from events.streamed_messages import StreamedMessages
from storage.config import CommitConfig
from tests.storage.store import TENANT, Store, bounded, opened, until


async def test_a_group_grows_while_another_is_under_way(database_url: str) -> None:
    """Of conversations that could go at once: one group of four costs less than four of one."""
    async with opened(database_url, committers=3, commit=CommitConfig(headway=60.0)) as store:
        conversations = [await store.conversation() for _ in range(5)]
        store.gate.hold()
        groups = len(store.gate.groups)
        tasks = [asyncio.create_task(store.post(conversations[0], "first"))]
        await store.gate.arrived(groups + 1)
        for count, conversation in enumerate(conversations[1:], 1):
            tasks.append(asyncio.create_task(store.post(conversation, "next")))
            await until(lambda count=count: store.waiting == count)  # type: ignore[misc]
        store.gate.release()
        await bounded(*tasks)
        assert [len(group) for group in store.gate.groups[groups:]] == [1, 4]


async def test_a_group_that_takes_long_is_joined_by_another(postgresql_url: str) -> None:
    async with opened(postgresql_url, committers=3) as store:
        slow, other = await store.conversation(), await store.conversation()
        store.gate.hold()
        groups = len(store.gate.groups)
        first = asyncio.create_task(store.post(slow, "first"))
        await store.gate.arrived(groups + 1)
        second = asyncio.create_task(store.post(other, "second"))
        await store.gate.arrived(groups + 2)  # while the first has not ended
        store.gate.release()
        await bounded(first, second)


async def _streaming(store: Store, conversation: str, count: int) -> tuple[StreamedMessages, list[str]]:
    ids = [(await store.post(conversation, "", status="streaming"))["id"] for _ in range(count)]
    streamed = StreamedMessages(store.database, store.writes._appending)
    for message in ids:  # their places are known from now on
        await streamed.append_delta(TENANT, message, 0, "")
    return streamed, ids


async def test_deltas_of_messages_that_are_written_at_once_are_committed_together(database_url: str) -> None:
    async with opened(database_url, committers=1, commit=CommitConfig(delta_gap=60.0)) as store:
        conversation = await store.conversation()
        streamed, (first, second, third) = await _streaming(store, conversation, 3)
        store.gate.hold()
        plug = asyncio.create_task(store.post(conversation, "plug"))
        await store.gate.arrived(4)
        together = [asyncio.create_task(streamed.append_delta(TENANT, message, 0, "a")) for message in (first, second)]
        await until(lambda: store.waiting == 2)
        store.gate.release()
        await bounded(plug, *together)
        groups = len(store.gate.groups)
        resting = [asyncio.create_task(streamed.append_delta(TENANT, message, 1, "b")) for message in (first, second)]
        resting.append(asyncio.create_task(streamed.append_delta(TENANT, third, 0, "c")))
        await until(lambda: store.waiting == 3)
        assert len(store.gate.groups) == groups
        # What is no delta waits for nobody, and takes along what came before it.
        await bounded(store.post(conversation, "now"), *resting)
        assert [len(group) for group in store.gate.groups[groups:]] == [4]
        await store.check(conversation)


async def test_deltas_rest_for_a_moment_only(database_url: str) -> None:
    async with opened(database_url, committers=1, commit=CommitConfig(delta_gap=0.01)) as store:
        conversation = await store.conversation()
        streamed, messages = await _streaming(store, conversation, 2)
        for offset in range(5):
            await bounded(*[streamed.append_delta(TENANT, message, offset, "x") for message in messages])
        await store.check(conversation)


async def test_one_who_writes_alone_waits_for_nobody(database_url: str) -> None:
    async with opened(database_url, committers=1, commit=CommitConfig(delta_gap=60.0)) as store:
        conversation = await store.conversation()
        streamed, [message] = await _streaming(store, conversation, 1)
        for offset in range(5):
            await bounded(streamed.append_delta(TENANT, message, offset, "x"))
