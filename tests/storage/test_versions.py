"""Versions: asked by many at once, with a query that has begun after each of them asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from storage.database import Database
from storage.errors import StorageUnavailable
from storage.records import Version, new_id
from storage.statement import Statement
from storage.versions import VersionReader
from tests.storage.store import TENANT, Store, bounded, opened, until
from tests.storage.test_database import Recorder

QUERY = ("conversations.versions", None)


class HeldQueries:
    """Carries queries out at once, and holds what they have found until it is told to let go."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self.open = asyncio.Event()
        self._fetch = database.fetch_inside
        monkeypatch.setattr(database, "fetch_inside", self._held)

    async def _held(self, statement: Statement, values: dict[str, Any]) -> Sequence[Any]:
        rows = await self._fetch(statement, values)
        self.done += 1
        await self.open.wait()
        return rows


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def asked(database_url: str, recorder: Recorder) -> AsyncIterator[Store]:
    """Where versions are asked for."""
    async with opened(database_url, observer=recorder) as store:
        yield store


@pytest.fixture
async def written(database_url: str) -> AsyncIterator[Store]:
    """Another process, as it were, which writes."""
    async with opened(database_url) as store:
        yield store


async def test_a_version_is_the_epoch_and_the_last_seq(asked: Store, written: Store) -> None:
    reader = VersionReader(asked.database)
    conversation = await written.conversation()
    assert await reader.read(TENANT, conversation) == Version(asked.database.epoch, 0)
    await written.post_many(conversation, ["one", "two"])
    assert await reader.read(TENANT, conversation) == Version(asked.database.epoch, 2)


async def test_who_asks_while_a_query_is_under_way_waits_for_the_next(
    asked: Store, written: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = VersionReader(asked.database)
    conversation = await written.conversation()
    queries = HeldQueries(asked.database, monkeypatch)
    early = asyncio.create_task(reader.read(TENANT, conversation))
    await until(lambda: queries.done == 1)
    # It has seen what it will say. What is acknowledged from here on, whoever asks from here on must see.
    await written.post(conversation, "acknowledged")
    late = asyncio.create_task(reader.read(TENANT, conversation))
    await asyncio.sleep(0)  # it has asked
    queries.open.set()
    before, after = await bounded(early, late)
    assert before is not None
    assert after is not None
    assert (before.last_seq, after.last_seq) == (0, 1)


async def test_all_who_wait_share_one_query_whatever_they_ask_for(
    asked: Store, written: Store, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = VersionReader(asked.database)
    places = [(tenant, await written.conversation(tenant=tenant)) for tenant in (TENANT, "another") for _ in range(5)]
    recorder.take()
    versions = await bounded(*[reader.read(*place) for place in places * 10])
    assert versions == [Version(asked.database.epoch, 0)] * 100
    assert recorder.take() == [QUERY]

    queries = HeldQueries(asked.database, monkeypatch)
    asking = [asyncio.create_task(reader.read(*places[0]))]
    await until(lambda: queries.done == 1)
    asking += [asyncio.create_task(reader.read(*place)) for place in places * 10]
    await asyncio.sleep(0)
    queries.open.set()
    await bounded(*asking)
    assert recorder.take() == [QUERY, QUERY]


async def test_what_is_not_the_tenants_has_no_version(asked: Store, written: Store) -> None:
    reader = VersionReader(asked.database)
    there, deleted = await written.conversation(), await written.conversation()
    await written.writes.delete_conversation(TENANT, deleted, key=None)
    versions = await bounded(
        reader.read(TENANT, there),
        reader.read("another", there),
        reader.read(TENANT, deleted),
        reader.read(TENANT, new_id()),
    )
    assert [version is not None for version in versions] == [True, False, False, False]


async def test_one_that_goes_away_takes_nothing_from_the_others(
    asked: Store, written: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = VersionReader(asked.database)
    conversation = await written.conversation()
    queries = HeldQueries(asked.database, monkeypatch)
    asking = [asyncio.create_task(reader.read(TENANT, conversation)) for _ in range(4)]
    await until(lambda: queries.done == 1)
    asking += [asyncio.create_task(reader.read(TENANT, conversation)) for _ in range(4)]
    await asyncio.sleep(0)
    for leaving in asking[::2]:
        leaving.cancel()
    queries.open.set()
    assert await bounded(*asking[1::2]) == [Version(asked.database.epoch, 0)] * 4
    assert all(leaving.cancelled() for leaving in asking[::2])


async def test_all_who_wait_are_told_of_a_failure_and_the_next_ask_anew(
    asked: Store, written: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = VersionReader(asked.database)
    conversation = await written.conversation()
    with monkeypatch.context() as broken:

        async def fail(*arguments: Any) -> Any:
            raise StorageUnavailable("away")

        broken.setattr(asked.database, "fetch_inside", fail)
        reads = [reader.read(TENANT, conversation) for _ in range(3)]
        outcomes = await asyncio.gather(*reads, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * 3
    assert await bounded(reader.read(TENANT, conversation)) == [Version(asked.database.epoch, 0)]
