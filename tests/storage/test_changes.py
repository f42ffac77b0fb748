"""Edits and deletions of messages and of conversations."""

import asyncio
import itertools
import json

import pytest
from msgspec import UNSET, Raw

from storage.errors import MessageDeleted, NotFound
from storage.records import new_id
from tests.storage.store import TENANT, Store, bounded, key, opened, until

SECRET = "the words that must go"


async def test_an_edit_changes_the_message_where_it_stands(store: Store) -> None:
    conversation = await store.conversation()
    first = await store.post(conversation, "before", metadata=Raw(b'{"kept":true}'))
    await store.post(conversation, "another")
    edited = await store.edit(first["id"], "after 😀")
    assert edited["position"] == 1
    assert (edited["content"], edited["length"], edited["metadata"]) == ("after 😀", 8, {"kept": True})
    assert edited["created_at"] == first["created_at"] < edited["updated_at"]
    assert (await store.check(conversation))[0] == edited
    assert [event.kind for event in await store.events(conversation)][2] == "message.updated"


async def test_an_edit_of_the_metadata_leaves_the_text(store: Store) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, "text")
    answer = await store.writes.edit(TENANT, message["id"], content=None, metadata=Raw(b'{"seen":1}'), key=None)
    edited = json.loads(answer.body)
    assert (edited["content"], edited["metadata"]) == ("text", {"seen": 1})
    assert await store.check(conversation) == [edited]


async def test_twenty_edits_at_once_are_twenty_events(store: Store) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, "0")
    contents = {f"edit {n}" for n in range(20)}
    await bounded(*[store.edit(message["id"], content) for content in contents])
    events = (await store.events(conversation))[1:]
    assert len(events) == 20
    assert {json.loads(event.payload)["message"]["content"] for event in events} == contents
    await store.check(conversation)


async def test_edits_of_the_same_version_that_wait_together_lose_nothing(database_url: str) -> None:
    async with opened(database_url, committers=1) as store:
        conversation, plug = await store.conversation(), await store.conversation()
        message = await store.post(conversation, "0")
        store.gate.hold()
        plugged = asyncio.create_task(store.post(plug, "keeps the only committer busy"))
        await store.gate.arrived(2)
        content = asyncio.create_task(store.edit(message["id"], "new text"))
        metadata = asyncio.create_task(
            store.writes.edit(TENANT, message["id"], content=None, metadata=Raw(b'{"new":1}'), key=None)
        )
        await until(lambda: store.waiting == 2)
        store.gate.release()
        await bounded(plugged)
        await bounded(content)
        await bounded(metadata)
        [found] = await store.check(conversation)
        assert (found["content"], found["metadata"]) == ("new text", {"new": 1})
        assert len(await store.events(conversation)) == 3


async def test_a_deleted_message_keeps_its_position_and_its_text_is_nowhere(store: Store) -> None:
    conversation = await store.conversation()
    before = await store.post(conversation, "before")
    message = await store.post(conversation, SECRET, metadata=Raw(b'{"m":"the words that must go"}'))
    after = await store.post(conversation, "after")
    await store.edit(message["id"], f"edited: {SECRET}")
    assert SECRET in await store.everything()
    answer = await store.writes.delete(TENANT, message["id"], key=None)
    assert (answer.status, answer.body) == (204, b"")
    assert SECRET not in await store.everything()
    first, deleted, third = await store.check(conversation)
    assert (first, third) == (before, after)
    assert (deleted["id"], deleted["position"]) == (message["id"], 2)
    assert (deleted["status"], deleted["content"], deleted["metadata"], deleted["length"]) == ("deleted", "", {}, 0)
    kinds = [event.kind for event in await store.events(conversation)]
    assert kinds == ["message.created", "message.deleted", "message.created", "message.deleted", "message.deleted"]


async def test_deleting_again_changes_nothing(store: Store) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, "text")
    for _ in range(3):
        assert (await store.writes.delete(TENANT, message["id"], key=None)).status == 204
    assert len(await store.events(conversation)) == 2


async def test_a_deleted_message_cannot_be_edited(store: Store) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, "text")
    await store.writes.delete(TENANT, message["id"], key=None)
    with pytest.raises(MessageDeleted):
        await store.edit(message["id"], "text again")
    assert len(await store.events(conversation)) == 2


async def test_a_deletion_wins_over_an_edit_that_came_too_late(store: Store) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, SECRET)
    store.gate.hold()
    deletion = asyncio.create_task(store.writes.delete(TENANT, message["id"], key=None))
    await store.gate.arrived(2)
    edit = asyncio.create_task(store.edit(message["id"], f"{SECRET}, edited"))
    await asyncio.wait([edit], timeout=0.05)  # it has read the text, which is still there
    store.gate.release()
    await bounded(deletion)
    with pytest.raises(MessageDeleted):
        await bounded(edit)
    assert SECRET not in await store.everything()
    await store.check(conversation)


async def test_what_is_not_there_cannot_be_changed(store: Store) -> None:
    for refused in (
        store.edit(new_id(), "text"),
        store.writes.delete(TENANT, new_id(), key=None),
        store.writes.update_conversation(TENANT, new_id(), title="t", metadata=UNSET, key=None),
        store.writes.delete_conversation(TENANT, new_id(), key=key()),
    ):
        with pytest.raises(NotFound):
            await refused


async def test_a_conversation_is_updated_field_by_field(store: Store) -> None:
    conversation = await store.conversation("old title")
    await store.post(conversation, "a message")
    update = store.writes.update_conversation
    answer = await update(TENANT, conversation, title=UNSET, metadata=Raw(b'{"a":1}'), key=None)
    assert answer.status == 200
    shown = json.loads(answer.body)
    assert (shown["title"], shown["metadata"], shown["message_count"], shown["as_of"]) == ("old title", {"a": 1}, 1, 2)
    shown = json.loads((await update(TENANT, conversation, title=None, metadata=UNSET, key=None)).body)
    assert (shown["title"], shown["metadata"], shown["as_of"]) == (None, {"a": 1}, 3)
    found = await store.conversations.get(TENANT, conversation)
    assert (found.title, bytes(found.metadata), found.as_of) == (None, b'{"a":1}', 3)
    last = (await store.events(conversation))[-1]
    assert last.kind == "conversation.updated"
    assert json.loads(last.payload)["conversation"] == shown
    await store.check(conversation)


async def test_updates_of_different_fields_at_once_are_all_kept(store: Store) -> None:
    conversation = await store.conversation()
    update = store.writes.update_conversation
    await bounded(
        *[update(TENANT, conversation, title=f"title {n}", metadata=UNSET, key=None) for n in range(5)],
        *[update(TENANT, conversation, title=UNSET, metadata=Raw(b'{"n":%d}' % n), key=None) for n in range(5)],
        *[store.post(conversation, f"message {n}") for n in range(5)],
    )
    events = await store.events(conversation)
    assert len(events) == 15
    states = [json.loads(event.payload)["conversation"] for event in events if event.kind == "conversation.updated"]
    for before, after in itertools.pairwise(states):
        assert before["title"] == after["title"] or before["metadata"] == after["metadata"]
    found = await store.conversations.get(TENANT, conversation)
    assert found.title == states[-1]["title"]
    assert json.loads(bytes(found.metadata)) == states[-1]["metadata"]
    await store.check(conversation)


async def test_a_deleted_conversation_is_found_by_nobody_and_says_so_in_its_last_event(store: Store) -> None:
    conversation, other = await store.conversation(), await store.conversation()
    message = await store.post(conversation, "text")
    kept = await store.post(other, "kept")
    answer = await store.writes.delete_conversation(TENANT, conversation, key=None)
    assert (answer.status, answer.body) == (204, b"")
    for refused in (
        store.post(conversation, "more"),
        store.window(conversation),
        store.messages.get(TENANT, message["id"]),
        store.edit(message["id"], "changed"),
        store.conversations.get(TENANT, conversation),
        store.writes.delete_conversation(TENANT, conversation, key=None),
    ):
        with pytest.raises(NotFound):
            await refused
    assert [found.id for found in (await store.conversations.page(TENANT, 10, None))[0]] == [other]
    assert [found.id for found in (await store.messages.newest(TENANT, 10, None))[0]] == [kept["id"]]
    page = await store.log.page(TENANT, conversation, 1, limit=10, budget=1_000)
    assert (page.deleted, page.head, [event.kind for event in page.events]) == (True, 2, ["conversation.deleted"])
    assert (await store.check(other)) == [kept]


async def test_what_comes_with_a_deletion_is_either_before_it_or_refused(store: Store) -> None:
    conversation = await store.conversation()
    posts = [asyncio.create_task(store.post(conversation, str(n))) for n in range(30)]
    deletion = store.writes.delete_conversation(TENANT, conversation, key=None)
    posts += [asyncio.create_task(store.post(conversation, str(n))) for n in range(30)]
    await bounded(deletion)
    await bounded(asyncio.wait(posts))
    posted = sum(post.exception() is None for post in posts)
    assert all(isinstance(post.exception(), NotFound | None) for post in posts)
    events = await store.events(conversation)
    assert [event.seq for event in events] == list(range(1, posted + 2))
    assert events[-1].kind == "conversation.deleted"
