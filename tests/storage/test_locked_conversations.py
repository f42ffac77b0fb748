"""One conversation that another transaction holds (PostgreSQL: SQLite locks the whole file)."""

import asyncio

import asyncpg
import pytest

from storage.config import CommitConfig
from storage.errors import QueueFull
from tests.storage.store import bounded, opened, until


async def test_a_locked_conversation_delays_no_other(postgresql_url: str) -> None:
    async with opened(postgresql_url, committers=3) as store:
        locked = [await store.conversation() for _ in range(4)]  # more than there are committers
        free = [await store.conversation() for _ in range(4)]
        holder = await asyncpg.connect(postgresql_url)
        try:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT 1 FROM conversations WHERE id = ANY($1::uuid[]) FOR UPDATE", locked)
            held = [asyncio.create_task(store.post(conversation, "held")) for conversation in locked * 3]
            for _ in range(20):
                # Less than the lock timeout (3 s), by far: nobody waited behind those that are held.
                await bounded(*[store.post(conversation, "free") for conversation in free], seconds=1.5)
            assert not any(task.done() for task in held)
            await transaction.commit()
            await bounded(*held)
        finally:
            await holder.close()
        assert [len(await store.check(conversation)) for conversation in locked] == [3] * 4
        assert [len(await store.check(conversation)) for conversation in free] == [20] * 4


async def test_a_lock_that_outlasts_the_lock_timeout_is_waited_for_again(postgresql_url: str) -> None:
    async with opened(postgresql_url) as store:
        await store.execute("ALTER FUNCTION commit_group_3 SET lock_timeout = '50ms'")
        conversation = await store.conversation()
        holder = await asyncpg.connect(postgresql_url)
        try:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", conversation)
            held = asyncio.create_task(store.post_many(conversation, ["one", "two"]))
            await store.gate.arrived(4)  # impatient, patient until the timeout, and alone, again and again
            assert not held.done()
            await transaction.commit()
            await bounded(held)
        finally:
            await holder.close()
        assert len(await store.check(conversation)) == 2


async def test_what_waits_too_long_for_a_lock_is_not_committed_after_its_client_was_told_so(
    postgresql_url: str,
) -> None:
    async with opened(postgresql_url, commit=CommitConfig(queue_seconds=0.3)) as store:
        await store.execute("ALTER FUNCTION commit_group_3 SET lock_timeout = '50ms'")
        conversation = await store.conversation()
        holder = await asyncpg.connect(postgresql_url)
        try:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", conversation)
            with pytest.raises(QueueFull):
                await store.post(conversation, "too late")
            # What the server is busy with when the client is told may still happen; nothing begins afterwards.
            store.gate.hold()
            await until(lambda: store.gate.inside == 0)
            await transaction.commit()
            store.gate.release()
            await until(lambda: not store.commits._in_flight)
        finally:
            await holder.close()
        await bounded(store.post(conversation, "in time"))
        assert [message["content"] for message in await store.check(conversation)] == ["in time"]


async def test_an_append_given_up_while_its_group_was_in_flight_is_not_tried_again(postgresql_url: str) -> None:
    async with opened(postgresql_url, commit=CommitConfig(queue_seconds=0.3)) as store:
        conversation = await store.conversation()
        holder = await asyncpg.connect(postgresql_url)
        try:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", conversation)
            store.gate.hold()
            with pytest.raises(QueueFull):
                await store.post(conversation, "given up")
            store.gate.release()  # now the group finds its conversation locked
            await until(lambda: len(store.gate.groups) > 1 or not store.commits._in_flight)
            await transaction.commit()
        finally:
            await holder.close()
        await bounded(store.post(conversation, "next"))
        assert [message["content"] for message in await store.check(conversation)] == ["next"]
