"""Reading the log: pages that are bounded, and what moved."""

import pytest
from msgspec import UNSET

from storage.errors import NotFound
from storage.records import Head, Heads, Movement, new_id
from tests.storage.store import TENANT, Store


@pytest.fixture
async def conversation(store: Store) -> str:
    """Ten events, the third of them large."""
    conversation = await store.conversation()
    await store.post_many(conversation, ["x" * (5_000 if n == 2 else 10) for n in range(9)])
    await store.writes.update_conversation(TENANT, conversation, title="title", metadata=UNSET, key=None)
    return conversation


async def _seqs(store: Store, conversation: str, after: int, limit: int = 100, budget: int = 1_000_000) -> list[int]:
    page = await store.log.page(TENANT, conversation, after, limit=limit, budget=budget)
    assert (page.floor, page.head, page.deleted) == (0, 10, False)
    return [event.seq for event in page.events]


async def test_a_page_is_what_follows(store: Store, conversation: str) -> None:
    assert await _seqs(store, conversation, 0) == list(range(1, 11))
    assert await _seqs(store, conversation, 4) == list(range(5, 11))
    assert await _seqs(store, conversation, 10) == []
    assert await _seqs(store, conversation, 1_000) == []


async def test_a_page_has_no_more_events_than_its_limit(store: Store, conversation: str) -> None:
    assert await _seqs(store, conversation, 2, limit=3) == [3, 4, 5]
    assert await _seqs(store, conversation, 0, limit=0, budget=0) == []


async def test_a_page_ends_with_the_event_that_uses_up_its_budget(store: Store, conversation: str) -> None:
    sizes = [len(event.payload) for event in await store.events(conversation)]
    assert await _seqs(store, conversation, 0, budget=sizes[0]) == [1]
    assert await _seqs(store, conversation, 0, budget=sizes[0] + 1) == [1, 2]
    assert await _seqs(store, conversation, 0, budget=sum(sizes[:2]) + 1) == [1, 2, 3]
    assert await _seqs(store, conversation, 3, budget=sum(sizes[3:6])) == [4, 5, 6]


async def test_a_page_is_one_event_at_least(store: Store, conversation: str) -> None:
    for after in range(10):
        assert await _seqs(store, conversation, after, budget=1) == [after + 1]


async def test_a_page_above_a_floor_begins_there(store: Store, conversation: str) -> None:
    await store.execute("UPDATE conversations SET floor_seq = 4")
    await store.execute("DELETE FROM events WHERE seq <= 4")
    page = await store.log.page(TENANT, conversation, 0, limit=100, budget=100_000)
    assert (page.floor, page.head, [event.seq for event in page.events]) == (4, 10, list(range(5, 11)))


async def test_a_page_brings_the_epoch_as_it_is_now(store: Store, conversation: str) -> None:
    """The process's own idea of it may be of another timeline."""
    await store.execute("UPDATE timeline SET epoch = 'another'")
    for limit in (0, 100):
        page = await store.log.page(TENANT, conversation, 0, limit=limit, budget=1_000)
        assert page.epoch == "another" != store.database.epoch


async def test_the_log_of_an_empty_conversation_is_empty(store: Store) -> None:
    page = await store.log.page(TENANT, await store.conversation(), 0, limit=10, budget=10)
    assert (page.floor, page.head, page.deleted, page.events) == (0, 0, False, [])


async def test_what_is_not_the_tenants_is_not_found(store: Store, conversation: str) -> None:
    for tenant, place in (("another", conversation), (TENANT, new_id())):
        with pytest.raises(NotFound):
            await store.log.page(tenant, place, 0, limit=10, budget=10)


async def test_moved_names_those_that_went_on_and_no_other(store: Store, conversation: str) -> None:
    moved, deleted, still = [await store.conversation() for _ in range(3)]
    for place in (moved, deleted, still):
        await store.post(place, "text")
    known = [(TENANT, place, 1) for place in (moved, deleted, still)]
    await store.post(moved, "more")
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    known += [("another", conversation, 0), (TENANT, new_id(), 0), (TENANT, conversation, 10)]
    assert sorted((await store.log.moved(known)).moved) == sorted([(moved, 2), (deleted, 2)])
    known = [(TENANT, moved, 2), (TENANT, deleted, 2), (TENANT, still, 1)]
    assert await store.log.moved(known) == Movement(store.database.epoch, [])


async def test_moved_names_those_that_are_behind_what_was_known(store: Store, conversation: str) -> None:
    """As after a backup was restored."""
    assert (await store.log.moved([(TENANT, conversation, 11)])).moved == [(conversation, 10)]


async def test_moved_takes_a_thousand_conversations_in_one_query(store: Store, conversation: str) -> None:
    known = [(TENANT, new_id(), 0) for _ in range(999)] + [(TENANT, conversation, 3)]
    assert (await store.log.moved(known)).moved == [(conversation, 10)]


async def test_moved_brings_the_epoch_as_it_is_now(store: Store) -> None:
    await store.execute("UPDATE timeline SET epoch = 'another'")
    assert await store.log.moved([]) == Movement("another", [])
    assert await store.log.moved([(TENANT, new_id(), 3)]) == Movement("another", [])


async def test_heads_are_of_those_that_are_there(store: Store, conversation: str) -> None:
    foreign, deleted, empty = await store.conversation(tenant="another"), *[await store.conversation() for _ in "de"]
    await store.writes.delete_conversation(TENANT, deleted, key=None)
    await store.execute("UPDATE conversations SET floor_seq = 4 WHERE last_seq = 10")
    heads = await store.log.heads(TENANT, [deleted, new_id(), conversation, foreign, empty])
    assert heads == Heads(store.database.epoch, {conversation: Head(4, 10), empty: Head(0, 0)})


async def test_heads_bring_the_epoch_as_it_is_now(store: Store) -> None:
    await store.execute("UPDATE timeline SET epoch = 'another'")
    for ids in ([], [new_id()]):
        assert await store.log.heads(TENANT, ids) == Heads("another", {})
