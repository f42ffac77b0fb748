"""Tables of PostgreSQL that have grown are looked at again, at once, and no others."""

import asyncio

import pytest

from storage import statistics
from storage.statistics import Statistics
from tests.storage.store import Store, opened, until, until_true


async def _rows_as_planned(store: Store) -> int:
    [[rows]] = await store.execute("SELECT reltuples::bigint FROM pg_class WHERE oid = 'events'::regclass")
    return int(rows)


async def _grow(store: Store, conversation: str) -> None:
    await store.execute("ALTER TABLE events SET (autovacuum_enabled = false)")
    for _ in range(4):
        await store.post_many(conversation, ["x" * 200] * 500)


async def test_a_table_that_has_doubled_is_looked_at_once(postgresql_url: str) -> None:
    async with opened(postgresql_url) as store:
        refresh = Statistics(store.database).refresh
        await refresh()
        assert await refresh() == []
        conversation = await store.conversation()
        await _grow(store, conversation)
        assert "events" in await refresh()
        assert await _rows_as_planned(store) == 2_000
        assert await refresh() == []
        await store.post_many(conversation, ["x" * 200] * 500)  # a quarter more
        assert await refresh() == []
        await _grow(store, conversation)
        assert "events" in await refresh()
        assert await _rows_as_planned(store) == 4_500


async def test_a_table_that_is_locked_is_passed_over(postgresql_url: str) -> None:
    async with opened(postgresql_url) as store:
        await _grow(store, await store.conversation())
        async with store.database.engine.connect() as other:
            await other.exec_driver_sql("LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE")
            before = await _rows_as_planned(store)
            async with asyncio.timeout(5):
                assert "events" in await Statistics(store.database).refresh()
            assert await _rows_as_planned(store) == before
        assert "events" in await Statistics(store.database).refresh()
        assert await _rows_as_planned(store) == 2_000


async def test_it_looks_by_itself(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_PERIOD", 0.01)
    async with opened(postgresql_url) as store:
        running = Statistics(store.database)
        await running.start()
        try:
            await _grow(store, await store.conversation())

            async def looked_at() -> bool:
                return await _rows_as_planned(store) > 0  # with as many as there were at that moment

            await until_true(looked_at)
        finally:
            await running.close()


async def test_whoever_closes_it_does_not_wait_for_a_slow_look(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_GROWN", "SELECT pg_sleep(20), $1::text[], $2::int")
    async with opened(postgresql_url, pool_size=1) as store:
        running = Statistics(store.database)
        await running.start()
        await until(lambda: store.database.connections_used() == 1)
        async with asyncio.timeout(5):
            await running.close()
            await store.post(await store.conversation(), "the only connection of the pool")
