"""Retention: the right prefix goes, what streams stays whole, and no reader sees a floor without its rows."""

import asyncio
import random
from datetime import timedelta

import pytest

from storage import retention
from storage.errors import NotFound
from storage.housekeeping import Housekeeping
from storage.records import LogPage, StatePage, new_id, now
from storage.retention import Retained, Retention
from storage.rows import to_time
from tests import proof
from tests.storage.author import Author, logged, set_age, shown_items, state_by_the_log
from tests.storage.store import TENANT, Store, bounded, opened, shown, until_true
from tests.storage.streaming import new_run

OLD, YOUNG, UNKNOWN = timedelta(days=10), timedelta(days=1), None
BEFORE = timedelta(days=5)


async def _log(store: Store, conversation: str, after: int = 0, limit: int = 10_000) -> LogPage:
    return await store.log.page(TENANT, conversation, after, limit=limit, budget=10_000_000)


async def _floor(store: Store, conversation: str) -> int:
    """The log's floor, after making sure that the log holds all that is above it and nothing else."""
    page = await _log(store, conversation)
    assert [event.seq for event in page.events] == list(range(page.floor + 1, page.head + 1))
    [[rows]] = await store.execute(f"SELECT count(*) FROM events WHERE conversation_id = '{conversation}'")
    assert rows == len(page.events)
    return page.floor


async def _conversation(store: Store, events: int = 10) -> str:
    conversation = await store.conversation()
    await store.post_many(conversation, [f"text {n}" for n in range(events)])
    return conversation


async def _quiet_for(store: Store, age: timedelta) -> None:
    at = to_time(now() - age, store.database.dialect)
    await store.execute("UPDATE conversations SET last_activity_at = :at", at=at)


@pytest.mark.parametrize(("keep", "floor"), [(0, 10), (1, 9), (4, 6), (10, 0), (11, 0), (2**53 - 1, 0)])
async def test_the_newest_stay(store: Store, keep: int, floor: int) -> None:
    conversation = await _conversation(store)
    messages = (await store.window(conversation)).items
    retained = await Retention(store.database).retain(before=None, keep=keep)
    assert retained == Retained(floor > 0, floor)
    assert await _floor(store, conversation) == floor
    assert (await store.window(conversation)).items == messages
    # Again: nothing is left to do.
    assert await Retention(store.database).retain(before=None, keep=keep) == Retained(0, 0)


async def test_what_was_made_is_the_state_below_the_floor(store: Store) -> None:
    conversation = await _conversation(store)
    author = Author(store, conversation)
    await author.set_run(new_run())
    await author.say(await author.begin(), "text")
    expected = state_by_the_log(await store.events(conversation))
    await Retention(store.database).retain(before=None, keep=0)
    assert await _floor(store, conversation) == 11
    page = await store.log.state(TENANT, conversation, 0, limit=100, budget=100_000)
    assert (page.floor, page.head, shown_items(page.items)) == (11, 13, expected)


_AGES: list[tuple[list[timedelta | None], int]] = [
    ([OLD, OLD, OLD, YOUNG, YOUNG], 3),
    ([YOUNG, OLD, OLD], 0),
    ([OLD, YOUNG, OLD, OLD], 1),  # clocks of several processes
    ([OLD, OLD], 2),
    ([UNKNOWN, UNKNOWN, OLD, YOUNG], 3),
    ([UNKNOWN, UNKNOWN, YOUNG], 0),
    ([OLD, UNKNOWN, UNKNOWN, YOUNG], 1),
    ([OLD, UNKNOWN, OLD, UNKNOWN, UNKNOWN], 3),
    ([UNKNOWN, UNKNOWN], 0),
    ([UNKNOWN] * 6 + [OLD], 7),
]


@pytest.mark.parametrize("batch", [1, 2, 5_000])
async def test_what_is_old_goes_up_to_the_first_that_is_not(
    store: Store, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event of unknown age is as old as the next one whose age is known."""
    monkeypatch.setattr(retention, "_BATCH", batch)
    made = [await _conversation(store, len(ages)) for ages, _ in _AGES]
    for conversation, (ages, _) in zip(made, _AGES, strict=True):
        for seq, age in enumerate(ages, 1):
            await set_age(store, conversation, None if age is None else now() - age, first=seq, last=seq)
    retained = await Retention(store.database).retain(before=now() - BEFORE, keep=0)
    floors = [floor for _, floor in _AGES]
    assert [await _floor(store, conversation) for conversation in made] == floors
    assert retained == Retained(sum(floor > 0 for floor in floors), sum(floors))


async def test_what_is_of_unknown_age_is_old_where_nothing_has_happened_since(store: Store) -> None:
    conversation = await _conversation(store)
    await set_age(store, conversation, None, first=1, last=10)
    await _quiet_for(store, BEFORE)
    # The time of the last activity may be a second behind.
    assert await Retention(store.database).retain(before=now() - BEFORE, keep=0) == Retained(0, 0)
    await _quiet_for(store, BEFORE + timedelta(seconds=10))
    assert await Retention(store.database).retain(before=now() - BEFORE, keep=3) == Retained(1, 7)
    assert await _floor(store, conversation) == 7


async def test_an_event_of_that_very_time_is_not_older(store: Store) -> None:
    conversation = await _conversation(store)
    at = now() - BEFORE
    await set_age(store, conversation, at - timedelta(microseconds=1), first=1, last=4)
    await set_age(store, conversation, at, first=5, last=10)
    await Retention(store.database).retain(before=at, keep=0)
    assert await _floor(store, conversation) == 4


async def test_the_newest_stay_however_old_they_are(store: Store) -> None:
    conversation = await _conversation(store)
    await set_age(store, conversation, now() - OLD, first=1, last=10)
    await Retention(store.database).retain(before=now() - BEFORE, keep=4)
    assert await _floor(store, conversation) == 6


async def test_appends_say_how_old_their_events_are(store: Store) -> None:
    conversation = await _conversation(store)
    before = now()
    await store.post(conversation, "later")
    await Retention(store.database).retain(before=before, keep=0)
    assert await _floor(store, conversation) == 10


async def test_what_streams_keeps_its_events_until_it_is_finished(store: Store) -> None:
    conversation = await _conversation(store)
    author = Author(store, conversation)
    first, second = await author.begin(), await author.begin()
    for n in range(5):
        await author.say(first, f"{n} 🙂 ")
        await author.say(second, f"{n} ")
    retain = Retention(store.database).retain
    assert await retain(before=None, keep=0) == Retained(1, 10)
    assert await retain(before=None, keep=0) == Retained(0, 0)
    for message in (first, second):
        assert (await store.messages.get(TENANT, message)).content == author.streams[message].text
    await author.finish(first)
    assert await retain(before=None, keep=0) == Retained(1, 1)
    assert (await store.messages.get(TENANT, second)).content == author.streams[second].text
    await author.finish(second, "failed")
    assert await retain(before=now() + OLD, keep=0) == Retained(1, 13)
    assert await _floor(store, conversation) == 24
    assert (await store.messages.get(TENANT, second)).content == "0 1 2 3 4 "


async def test_a_deleted_message_that_streamed_does_not_hold_the_log(store: Store) -> None:
    conversation = await _conversation(store)
    author = Author(store, conversation)
    message = await author.begin()
    await author.say(message, "text")
    await store.writes.delete(TENANT, message, key=None)
    await Retention(store.database).retain(before=None, keep=0)
    assert await _floor(store, conversation) == 13


async def test_a_message_that_begins_to_stream_after_the_first_look_keeps_its_events(store: Store) -> None:
    conversation = await _conversation(store)
    author = Author(store, conversation)
    retained = Retention(store.database)
    [candidate] = [candidate async for candidate in retained._candidates(0, None, None)]
    await author.begin()
    await store.post(conversation, "text")
    await retained._remove_batch(candidate.id, 12, 0)
    assert await _floor(store, conversation) == 10


async def test_a_message_that_begins_to_stream_while_the_lock_is_waited_for_keeps_its_events(
    postgresql_url: str,
) -> None:
    """What is read before the lock is held is of a snapshot that does not know it."""
    async with opened(postgresql_url) as store, opened(postgresql_url) as other:
        conversation = await _conversation(store)
        async with other.database.driver() as writer:
            transaction = writer.transaction()
            await transaction.start()
            await writer.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", conversation)
            retaining = asyncio.create_task(Retention(store.database).retain(before=None, keep=0))
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

            async def waiting() -> bool:
                return bool((await store.execute(waits))[0][0])

            await until_true(waiting)
            # As an append does; the message streams since its fourth event, to make the point.
            await writer.execute(
                "INSERT INTO streaming_messages SELECT conversation_id, id, tenant, 4, 10, 0 FROM messages"
                " WHERE conversation_id = $1 AND position = 4",
                conversation,
            )
            await writer.execute(
                "UPDATE messages SET status = 'streaming' WHERE conversation_id = $1 AND position = 4", conversation
            )
            await transaction.commit()
        [retained] = await bounded(retaining)
        assert retained == Retained(1, 3)
        assert await _floor(store, conversation) == 3


async def test_every_conversation_is_come_to(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH", 3)
    made = [await _conversation(store, 2 + n) for n in range(7)]
    empty, deleted = await store.conversation(), await _conversation(store)
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    assert await Retention(store.database).retain(before=None, keep=4) == Retained(4, 10)
    assert [await _floor(store, conversation) for conversation in [*made, empty, deleted]] == [
        0,
        0,
        0,
        1,
        2,
        3,
        4,
        0,
        0,
    ]


async def test_more_conversations_than_are_looked_up_at_once_are_come_to(store: Store) -> None:
    made = [await store.conversation() for _ in range(retention._PAGE + 3)]
    await bounded(*[store.post(conversation, "text") for conversation in made])
    assert await Retention(store.database).retain(before=None, keep=0) == Retained(len(made), len(made))


async def test_only_the_tenants_or_only_the_one_loses_events(store: Store) -> None:
    made = [await _conversation(store) for _ in range(3)]
    await store.execute(f"UPDATE conversations SET tenant = 'another' WHERE id = '{made[2]}'")
    retain = Retention(store.database).retain
    assert await retain(before=None, keep=6, tenant="another") == Retained(1, 4)
    assert await retain(before=None, keep=5, conversation_id=made[1]) == Retained(1, 5)
    assert await retain(before=None, keep=4, tenant=TENANT, conversation_id=made[1]) == Retained(1, 1)
    assert [await _floor(store, conversation) for conversation in made[:2]] == [0, 6]
    for tenant, conversation in (("another", made[0]), (TENANT, made[2]), (None, new_id())):
        with pytest.raises(NotFound):
            await retain(before=None, keep=0, tenant=tenant, conversation_id=conversation)


async def test_a_deleted_conversation_is_left_to_housekeeping(store: Store) -> None:
    deleted = await _conversation(store)
    retained = Retention(store.database)
    [candidate] = [candidate async for candidate in retained._candidates(0, None, None)]
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    with pytest.raises(NotFound):
        await retained.retain(before=None, keep=0, conversation_id=deleted)
    assert await retained._retain(candidate, None, 0) == 0  # deleted since it was looked up
    assert await _floor(store, deleted) == 0
    await Housekeeping(store.database).sweep()
    assert await _floor(store, deleted) == 10


@pytest.mark.proof
async def test_no_reader_sees_a_floor_without_its_rows_while_writers_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are dense above their floor, states are what the whole log makes of them, streaming texts stay whole."""
    monkeypatch.setattr(retention, "_BATCH", 7)
    conversation = await store.conversation()
    turns = proof.count(15, 200)
    states: list[tuple[int, StatePage]] = []
    writing, pages, removed = True, 0, 0

    async def write(number: int) -> None:
        author, chance = Author(store, conversation), random.Random(number)
        for turn in range(turns):
            if number == 0:
                await store.edit((await store.post(conversation, "text"))["id"], f"edited {turn}")
                continue
            message = await author.begin()
            for _ in range(chance.randrange(8)):
                await author.say(message, chance.choice(["🙂", "word ", "e\u0301", "ש"]))
                read = await store.messages.get(TENANT, message)
                assert read.content == author.streams[message].text
            await author.finish(message)

    async def retain() -> None:
        nonlocal removed
        chance = random.Random(1_000)
        while writing:
            removed += (await Retention(store.database).retain(before=None, keep=chance.randrange(20))).events
            await asyncio.sleep(0)

    async def read(number: int) -> None:
        nonlocal pages
        chance, head = random.Random(100 + number), 0
        while writing:
            after, limit = chance.randrange(head + 1), chance.choice([1, 10, 500])
            page = await _log(store, conversation, after, limit)
            seqs = [event.seq for event in page.events]
            assert page.head >= head
            head = page.head
            first = max(after, page.floor) + 1
            assert seqs == list(range(first, min(after + limit, page.head) + 1))
            state = await store.log.state(TENANT, conversation, after, limit=limit, budget=10_000)
            states.append((after, state))
            pages += 1
            await asyncio.sleep(0)

    others = [asyncio.create_task(task) for task in (retain(), retain(), read(1), read(2))]
    try:
        await bounded(*[write(number) for number in range(5)], seconds=1_800.0 if proof.is_full() else 60.0)
    finally:
        writing = False
        await asyncio.gather(*others)
    await _floor(store, conversation)
    assert removed > turns
    # What the log said before it was shortened, its listener was told.
    told = sorted(store.committed, key=lambda line: line[1])
    whole = [event for append, seq, position in told for event in logged(append, seq, position)]
    assert [event.seq for event in whole] == list(range(1, len(whole) + 1))
    for after, state in states:
        expected = state_by_the_log(whole[: state.head], after)
        items = shown_items(state.items)
        assert items == expected[: len(items)]
        assert state.complete == (len(items) == len(expected))
    final = {message["id"]: message["content"] for message in shown(await store.window(conversation))}
    assert final == {str(item["id"]): item["content"] for _, item in state_by_the_log(whole) if "content" in item}
    proof.record(
        "pages of a log that is shortened under five writers, none with a hole",
        store.database.dialect,
        pages,
        f"{removed} events removed meanwhile",
    )
