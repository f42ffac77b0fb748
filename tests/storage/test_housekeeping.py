"""What deletion and time leave behind is removed, and nothing else."""

import asyncio
import contextlib
from datetime import timedelta

import pytest

from storage import housekeeping
from storage.errors import NotFound
from storage.housekeeping import Housekeeping
from storage.records import now
from storage.retention import Retention
from storage.rows import to_time
from tests.storage.author import Author
from tests.storage.store import TENANT, Store, bounded, key, shown
from tests.storage.streaming import new_run


async def _count(store: Store, table: str) -> int:
    [row] = await store.execute(f"SELECT count(*) FROM {table}")
    return int(row[0])


async def _a_day_passes(store: Store) -> None:
    at = to_time(now() - timedelta(hours=24, seconds=1), store.database.dialect)
    await store.execute("UPDATE conversations SET deleted_at = :at WHERE deleted_at IS NOT NULL", at=at)
    await store.execute("UPDATE idempotency_keys SET created_at = :at", at=at)


async def test_a_deleted_conversation_leaves_its_last_event_and_after_a_day_nothing(store: Store) -> None:
    deleted, kept = await store.conversation(), await store.conversation()
    await store.post_many(deleted, ["words"] * 7)
    messages = await store.post_many(kept, ["kept"] * 3)
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    for _ in range(2):  # a second sweep finds nothing to do
        await Housekeeping(store.database).sweep()
        assert "words" not in await store.everything()
        assert await _count(store, "messages") == 3
        page = await store.log.page(TENANT, deleted, 0, limit=100, budget=100_000)
        assert (page.floor, page.head, page.deleted) == (7, 8, True)
        assert [(event.seq, event.kind) for event in page.events] == [(8, "conversation.deleted")]
    assert (await store.log.moved([(TENANT, deleted, 7)])).moved == [(deleted, 8)]
    await _a_day_passes(store)
    await Housekeeping(store.database).sweep()
    assert deleted not in await store.everything()
    with pytest.raises(NotFound):
        await store.log.page(TENANT, deleted, 0, limit=100, budget=100_000)
    assert await store.check(kept) == messages


async def test_a_conversation_of_many_messages_is_removed_in_small_transactions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_BATCH", 10)
    deleted = await store.conversation()
    await store.post_many(deleted, ["words"] * 35)
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    await Housekeeping(store.database).sweep()
    assert (await _count(store, "messages"), await _count(store, "events")) == (0, 1)
    assert (await store.log.page(TENANT, deleted, 0, limit=100, budget=100_000)).floor == 35


async def test_a_sweep_that_was_cut_off_is_finished_by_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "_BATCH", 10)
    deleted = await store.conversation()
    await store.post_many(deleted, ["words"] * 35)
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    sweeps = Housekeeping(store.database)
    transaction, left = store.database.transaction, 0

    def failing(operation: str) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("cut off")
        return transaction(operation)

    monkeypatch.setattr(store.database, "transaction", failing)
    for sweep in range(20):  # each gets a little further than the one before
        left = sweep
        with contextlib.suppress(RuntimeError):
            await sweeps.sweep()
        page = await store.log.page(TENANT, deleted, 0, limit=100, budget=100_000)
        assert [event.seq for event in page.events] == list(range(page.floor + 1, 37))
    assert (await _count(store, "messages"), await _count(store, "events")) == (0, 1)


async def test_messages_that_streamed_and_runs_are_removed_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "_BATCH", 3)
    deleted, kept = await store.conversation(), await store.conversation()
    for conversation in (deleted, kept):
        author = Author(store, conversation)
        for _ in range(7):
            await author.say(await author.begin(), "words")
            await author.set_run(new_run())
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    await Housekeeping(store.database).sweep()
    tables = ("messages", "streaming_messages", "runs")
    assert [await _count(store, table) for table in tables] == [7, 7, 7]
    await _a_day_passes(store)
    await Housekeeping(store.database).sweep()
    assert [await _count(store, table) for table in tables] == [7, 7, 7]
    assert len(shown(await store.window(kept))) == 7
    assert deleted not in repr([await store.execute(f"SELECT * FROM {table}") for table in (*tables, "conversations")])


async def test_a_conversation_whose_log_was_emptied_by_retention_is_removed_too(store: Store) -> None:
    deleted = await store.conversation()
    await store.post_many(deleted, ["words"] * 7)
    await Author(store, deleted).set_run(new_run())
    await Retention(store.database).retain(before=None, keep=0)
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    for _ in range(2):
        await Housekeeping(store.database).sweep()
        assert [await _count(store, table) for table in ("messages", "runs", "events")] == [0, 0, 1]
    await _a_day_passes(store)
    await Housekeeping(store.database).sweep()
    assert [await _count(store, table) for table in ("events", "conversations")] == [0, 0]


async def test_nothing_is_left_of_more_deletions_than_one_sweep_looks_at(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a day in which no process ran, say."""
    monkeypatch.setattr(housekeeping, "_CONVERSATIONS", 3)
    for _ in range(10):
        deleted = await store.conversation()
        await store.post(deleted, "words")
        await store.writes.delete_conversation(TENANT, deleted, key=None)
    await _a_day_passes(store)
    for _ in range(4):
        await Housekeeping(store.database).sweep()
    assert [await _count(store, table) for table in ("messages", "events", "conversations")] == [0, 0, 0]


async def test_a_conversation_deleted_when_it_was_empty_is_removed_too(store: Store) -> None:
    deleted = await store.conversation()
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    await Housekeeping(store.database).sweep()
    assert (await store.log.page(TENANT, deleted, 0, limit=10, budget=1_000)).head == 1
    await _a_day_passes(store)
    await Housekeeping(store.database).sweep()
    assert [await _count(store, table) for table in ("events", "conversations")] == [0, 0]


async def test_keys_are_removed_when_they_have_expired(store: Store) -> None:
    conversation = await store.conversation()
    await store.post(conversation, "old", key("old"))
    await _a_day_passes(store)
    await store.post(conversation, "new", key("new"))
    await Housekeeping(store.database).sweep()
    assert [row[0] for row in await store.execute("SELECT key FROM idempotency_keys")] == ["new"]
    assert len(await store.check(conversation)) == 2


async def test_any_number_may_sweep_at_once_while_others_write(store: Store) -> None:
    kept = await store.conversation()
    for _ in range(5):
        deleted = await store.conversation()
        await store.post_many(deleted, ["words"] * 20)
        await store.writes.delete_conversation(TENANT, deleted, key=None)
    await bounded(
        *[Housekeeping(store.database).sweep() for _ in range(4)],
        *[asyncio.ensure_future(store.post(kept, str(n))) for n in range(20)],
    )
    assert len(await store.check(kept)) == 20
    assert (await _count(store, "messages"), await _count(store, "events")) == (20, 25)
