"""Single messages, and the newest of all conversations."""

import json

import msgspec
import pytest

from events.conversation_log import Draft
from storage.errors import NotFound
from storage.records import new_id
from tests.storage.store import TENANT, Store


async def test_the_newest_come_first_from_all_conversations_of_the_tenant(store: Store) -> None:
    conversations = [await store.conversation() for _ in range(3)]
    posted = [await store.post(conversations[n % 3], str(n)) for n in range(10)]
    elsewhere = await store.conversation(tenant="another")
    await store.writes.post("another", elsewhere, [Draft("user", "theirs")], many=False, key=None)
    for limit in (1, 3, 5, 10, 11):
        met: list[str] = []
        cursor: str | None = None
        while True:
            page, cursor = await store.messages.newest(TENANT, limit, cursor)
            met += [message.id for message in page]
            if cursor is None:
                break
            assert len(page) == limit
        assert met == [message["id"] for message in reversed(posted)]


async def test_a_walk_through_the_newest_is_undisturbed_by_newer_ones(store: Store) -> None:
    conversation = await store.conversation()
    posted = [message["id"] for message in await store.post_many(conversation, [str(n) for n in range(9)])]
    page, cursor = await store.messages.newest(TENANT, 4, None)
    await store.post_many(conversation, ["newer"] * 5)
    rest, end = await store.messages.newest(TENANT, 5, cursor)
    assert end is None
    assert [message.id for message in page + rest] == posted[::-1]


async def test_a_message_is_what_its_author_was_told(store: Store) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, "text")
    found = await store.messages.get(TENANT, message["id"])
    assert json.loads(msgspec.json.encode(found)) == message


async def test_what_is_not_the_tenants_is_not_found(store: Store) -> None:
    message = await store.post(await store.conversation(), "text")
    for tenant, identifier in (("another", message["id"]), (TENANT, new_id())):
        with pytest.raises(NotFound):
            await store.messages.get(tenant, identifier)
