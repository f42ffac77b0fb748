"""The list of conversations, walked through while others write."""

import random
from datetime import timedelta

from storage.conversations import _TOUCHED, Conversations
from storage.records import new_id, now
from storage.rows import to_time
from storage.statement import array_parameter
from tests.storage.store import TENANT, Store, opened


async def _walk(conversations: Conversations, limit: int) -> list[str]:
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = await conversations.page(TENANT, limit, cursor)
        ids += [conversation.id for conversation in page]
        if cursor is None:
            return ids
        assert len(page) == limit


async def _quiet_for(store: Store, conversation: str, minutes: int) -> None:
    at = to_time(now() - timedelta(minutes=minutes), store.database.dialect)
    await store.execute(f"UPDATE conversations SET last_activity_at = :at WHERE id = '{conversation}'", at=at)


async def test_conversations_are_listed_by_their_last_activity(store: Store) -> None:
    made = [await store.conversation(str(n)) for n in range(10)]
    for minutes, conversation in enumerate(made):
        await _quiet_for(store, conversation, minutes + 1)
    for limit in (1, 3, 5, 10, 11):
        assert await _walk(store.conversations, limit) == made
    await store.post(made[7], "text")
    assert await _walk(store.conversations, 4) == [made[7], *made[:7], *made[8:]]


async def test_those_of_the_same_moment_are_listed_once_each(store: Store) -> None:
    made = [await store.conversation() for _ in range(12)]
    at = to_time(now(), store.database.dialect)
    await store.execute("UPDATE conversations SET last_activity_at = :at", at=at)
    assert await _walk(store.conversations, 5) == sorted(made, reverse=True)


async def test_an_empty_list_has_one_empty_page(store: Store) -> None:
    assert await store.conversations.page(TENANT, 10, None) == ([], None)


async def test_one_that_is_untouched_during_the_walk_is_met_exactly_once(store: Store) -> None:
    made = [await store.conversation(str(n)) for n in range(60)]
    for minutes, conversation in enumerate(made):
        await _quiet_for(store, conversation, minutes + 1)
    chance = random.Random(1)  # the same each time
    busy = set(chance.sample(made, 20))
    quiet = [conversation for conversation in made if conversation not in busy]
    met: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = await store.conversations.page(TENANT, 7, cursor)
        met += [conversation.id for conversation in page]
        if cursor is None:
            break
        for conversation in chance.sample(sorted(busy), 6):
            if chance.random() < 0.2:
                await store.writes.delete_conversation(TENANT, conversation, key=None)
                busy.discard(conversation)
            else:
                await store.post(conversation, "still talking")
        await store.conversation("new")
    assert [conversation for conversation in met if conversation in set(quiet)] == quiet


async def test_states_are_of_those_that_are_the_tenants(store: Store) -> None:
    live, deleted, empty = [await store.conversation(str(n)) for n in range(3)]
    foreign = await store.conversation(tenant="another")
    for conversation in (live, deleted):
        await store.post(conversation, "text")
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    found, gone = await store.conversations.states(TENANT, [foreign, deleted, live, new_id(), empty])
    assert {conversation.id: conversation for conversation in found} == {
        identifier: await store.conversations.get(TENANT, identifier) for identifier in (live, empty)
    }
    assert gone == [deleted]
    assert await store.conversations.states(TENANT, []) == ([], [])


async def test_touched_are_those_that_were_active_or_deleted_since_then(store: Store) -> None:
    made = [await store.conversation() for _ in range(6)]
    foreign, hidden = await store.conversation(tenant="another"), await store.conversation(tenant="hidden")
    for minutes, conversation in enumerate(made, 1):
        await _quiet_for(store, conversation, minutes * 10)
    for conversation in (foreign, hidden):
        await _quiet_for(store, conversation, 25)
    # Active at this moment, both.
    await store.post(made[4], "text")
    await store.writes.delete_conversation(TENANT, made[5], key=None)
    since = now() - timedelta(minutes=35)
    touched = await store.conversations.touched([TENANT, "another"], since, 100)
    assert [row.at for row in touched] == sorted((row.at for row in touched), reverse=True)
    rows = [(row.tenant, row.id, row.last_seq, row.deleted) for row in touched]
    assert sorted(rows[:2]) == sorted([(TENANT, made[4], 1, False), (TENANT, made[5], 1, True)])
    # Latest first.
    assert rows[2:] == [
        (TENANT, made[0], 0, False),
        (TENANT, made[1], 0, False),
        ("another", foreign, 0, False),
        (TENANT, made[2], 0, False),
    ]
    assert await store.conversations.touched([TENANT, "another"], since, 3) == touched[:3]
    assert await store.conversations.touched(["another"], since, 100) == [touched[4]]
    assert await store.conversations.touched([], since, 100) == []
    assert await store.conversations.touched([TENANT], now() + timedelta(minutes=1), 100) == []


async def test_touched_reads_ranges_of_the_two_indexes(sqlite_url: str, postgresql_url: str) -> None:
    for url in (sqlite_url, postgresql_url):
        async with opened(url) as store, store.database.driver() as driver:
            dialect = store.database.dialect
            values = {"tenants": array_parameter(dialect, [TENANT]), "since": to_time(now(), dialect), "limit": 10}
            sql, arguments = _TOUCHED.text(dialect), _TOUCHED.arguments(dialect, values)
            if dialect == "sqlite":
                plan = str(await driver.execute_fetchall(f"EXPLAIN QUERY PLAN {sql}", arguments))
            else:
                await driver.execute("SET enable_seqscan = off")  # the table is empty
                plan = str(await driver.fetch(f"EXPLAIN {sql}", *arguments))
            for index in ("ix_conversations_by_activity", "ix_conversations_deleted_at"):
                assert f" {index} " in plan
