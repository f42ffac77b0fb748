"""The list of conversations, walked through while others write."""

import random
from datetime import timedelta

from storage.conversations import Conversations
from storage.records import now
from storage.rows import to_time
from tests.storage.store import TENANT, Store


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
