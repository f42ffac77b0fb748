"""Idempotency keys: a request that comes again gets the first one's answer, and changes nothing."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from msgspec import UNSET, Raw

from events.conversation_log import Batch, Draft, prepare
from storage import commit_postgresql
from storage.append import ImportProgress, Moved, WriteKey
from storage.errors import KeyReused, MessageDeleted, NotFound
from storage.idempotency import Answer, Keys
from storage.records import now
from storage.rows import to_time
from tests.storage.store import TENANT, Store, bounded, key, opened, until_true

DRAFTS = [Draft("user", "one"), Draft("agent", "two", agent_id="general_01")]


async def _expire_keys(store: Store) -> None:
    at = to_time(now() - timedelta(hours=24), store.database.dialect)
    await store.execute("UPDATE idempotency_keys SET created_at = :at", at=at)


async def test_a_post_that_comes_again_gets_the_same_bytes(store: Store) -> None:
    conversation = await store.conversation()
    await store.post(conversation, "before")
    post = store.writes.post
    first = await post(TENANT, conversation, DRAFTS, many=True, key=key())
    await store.post(conversation, "in between")
    again = await post(TENANT, conversation, DRAFTS, many=True, key=key())
    assert (first.status, first.replayed) == (201, False)
    assert (again.status, again.body, again.replayed) == (201, first.body, True)
    assert [item["position"] for item in json.loads(again.body)["items"]] == [2, 3]
    assert len(await store.check(conversation)) == 4
    assert len(store.committed) == 3


async def test_the_same_key_with_another_request_is_refused(store: Store) -> None:
    conversation = await store.conversation()
    await store.post(conversation, "one", key())
    with pytest.raises(KeyReused):
        await store.post(conversation, "two", key(fingerprint="another request"))
    assert len(await store.check(conversation)) == 1


async def test_a_key_holds_across_conversations(store: Store) -> None:
    one, other = await store.conversation(), await store.conversation()
    await store.post(one, "text", key(fingerprint=one))
    with pytest.raises(KeyReused):
        await store.post(other, "text", key(fingerprint=other))
    assert await store.check(other) == []


@pytest.mark.parametrize("other", [WriteKey("bob", "POST messages", "key", "r"), key(route="PATCH"), key("another")])
async def test_a_key_counts_for_its_principal_and_route(store: Store, other: WriteKey) -> None:
    conversation = await store.conversation()
    await store.post(conversation, "text", key())
    await store.post(conversation, "text", other)
    assert len(await store.check(conversation)) == 2


async def test_a_key_counts_for_its_tenant(store: Store) -> None:
    conversation, theirs = await store.conversation(), await store.conversation(tenant="another")
    await store.post(conversation, "text", key())
    answer = await store.writes.post("another", theirs, [Draft("user", "text")], many=False, key=key())
    assert not answer.replayed
    assert json.loads(answer.body)["conversation_id"] == theirs


async def test_a_key_is_forgotten_after_a_day(store: Store) -> None:
    conversation = await store.conversation()
    await store.post(conversation, "today", key())
    await _expire_keys(store)
    tomorrow = key(fingerprint="another request")
    second = await store.post(conversation, "tomorrow", tomorrow)
    assert await store.post(conversation, "tomorrow", tomorrow) == second
    assert [message["content"] for message in await store.check(conversation)] == ["today", "tomorrow"]


async def test_a_refused_request_leaves_no_key_behind(store: Store) -> None:
    conversation = await store.conversation()
    drafts = [Draft("agent", "text", agent_id="nobody")]
    for _ in range(2):
        with pytest.raises(Exception, match="nobody"):
            await store.writes.post(TENANT, conversation, drafts, many=False, key=key())
    await store.post(conversation, "text", key(fingerprint="the right one"))


async def test_a_post_can_be_repeated_after_its_conversation_is_gone(store: Store) -> None:
    conversation = await store.conversation()
    first = await store.writes.post(TENANT, conversation, DRAFTS, many=True, key=key())
    await store.writes.delete_conversation(TENANT, conversation, key=None)
    again = await store.writes.post(TENANT, conversation, DRAFTS, many=True, key=key())
    assert (again.body, again.replayed) == (first.body, True)


Change = Callable[[Store, str, str], Awaitable[Answer]]

CHANGES: dict[str, Change] = {
    "edit": lambda store, _, message: store.writes.edit(
        TENANT, message, content="edited", metadata=None, key=key(route="edit")
    ),
    "delete": lambda store, _, message: store.writes.delete(TENANT, message, key=key(route="delete")),
    "update_conversation": lambda store, conversation, _: store.writes.update_conversation(
        TENANT, conversation, title="updated", metadata=UNSET, key=key(route="update")
    ),
    "delete_conversation": lambda store, conversation, _: store.writes.delete_conversation(
        TENANT, conversation, key=key(route="delete conversation")
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_that_comes_again_is_made_once(store: Store, change: Change) -> None:
    conversation = await store.conversation()
    message = (await store.post_many(conversation, ["text", "more"]))[1]["id"]
    first = await change(store, conversation, message)
    head = len(await store.events(conversation))
    again = await change(store, conversation, message)
    assert (again.status, again.body, again.replayed) == (first.status, first.body, True)
    assert len(await store.events(conversation)) == head == 3


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_can_be_repeated_after_the_thing_is_gone(store: Store, change: Change) -> None:
    conversation = await store.conversation()
    message = (await store.post_many(conversation, ["text", "more"]))[1]["id"]
    first = await change(store, conversation, message)
    if change is not CHANGES["delete_conversation"]:
        await store.writes.delete(TENANT, message, key=None)
        again = await change(store, conversation, message)
        assert (again.status, again.body, again.replayed) == (first.status, first.body, True)
        await store.writes.delete_conversation(TENANT, conversation, key=None)
    again = await change(store, conversation, message)
    assert (again.status, again.body, again.replayed) == (first.status, first.body, True)


async def test_a_key_of_another_request_is_no_way_around_what_is_gone(store: Store) -> None:
    conversation = await store.conversation()
    message = (await store.post(conversation, "text"))["id"]
    await store.edit(message, "edited", key(fingerprint="first"))
    await store.writes.delete(TENANT, message, key=None)
    with pytest.raises(MessageDeleted):
        await store.edit(message, "edited", key("unknown"))
    with pytest.raises(KeyReused):
        await store.edit(message, "other", key(fingerprint="second"))
    await store.writes.delete_conversation(TENANT, conversation, key=None)
    with pytest.raises(NotFound):
        await store.edit(message, "edited", key("unknown"))


async def test_a_conversation_is_made_once(store: Store) -> None:
    create, made = store.conversations.create, key(route="POST conversations")
    first = await create(TENANT, "title", Raw(b'{"a":1}'), made)
    again = await create(TENANT, "title", Raw(b'{"a":1}'), made)
    assert (first.status, first.replayed) == (201, False)
    assert (again.status, again.body, again.replayed) == (201, first.body, True)
    with pytest.raises(KeyReused):
        await create(TENANT, "other", Raw(b"{}"), key(route="POST conversations", fingerprint="other"))
    assert len((await store.conversations.page(TENANT, 10, None))[0]) == 1
    await _expire_keys(store)
    later = await create(TENANT, "title", Raw(b'{"a":1}'), made)
    assert not later.replayed
    assert later.body != first.body


async def test_the_creation_of_a_conversation_can_be_repeated_after_it_is_gone(store: Store) -> None:
    create, made = store.conversations.create, key(route="POST conversations")
    first = await create(TENANT, None, Raw(b"{}"), made)
    await store.writes.delete_conversation(TENANT, json.loads(first.body)["id"], key=None)
    again = await create(TENANT, None, Raw(b"{}"), made)
    assert (again.body, again.replayed) == (first.body, True)


async def test_the_same_key_at_once_makes_one_conversation(store: Store, database_url: str) -> None:
    async with opened(database_url) as other:
        for turn in range(5):
            made = key(f"key {turn}", route="POST conversations")
            answers = await bounded(
                *[one.conversations.create(TENANT, "t", Raw(b"{}"), made) for one in (store, other) * 4]
            )
            assert len({answer.body for answer in answers}) == 1
            assert sum(not answer.replayed for answer in answers) == 1
        assert len((await store.conversations.page(TENANT, 10, None))[0]) == 5


async def test_the_same_key_at_once_in_one_process_makes_one_message(store: Store) -> None:
    conversation = await store.conversation()
    answers = await bounded(*[store.writes.post(TENANT, conversation, DRAFTS, many=True, key=key()) for _ in range(8)])
    assert len({answer.body for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert len(await store.check(conversation)) == 2


async def test_the_same_key_at_once_in_two_processes_makes_one_message(store: Store, database_url: str) -> None:
    conversation = await store.conversation()
    async with opened(database_url) as other:
        for turn in range(10):
            groups = (len(store.gate.groups), len(other.gate.groups))
            store.gate.hold()
            other.gate.hold()
            one = asyncio.create_task(store.post(conversation, "once", key(str(turn))))
            two = asyncio.create_task(other.post(conversation, "once", key(str(turn))))
            await store.gate.arrived(groups[0] + 1)
            await other.gate.arrived(groups[1] + 1)
            store.gate.release()
            other.gate.release()
            first, second = await bounded(one, two)
            assert first == second
        assert len(await store.check(conversation)) == 10


async def test_the_same_key_at_once_for_two_conversations_is_refused_for_one(store: Store, database_url: str) -> None:
    conversations = [await store.conversation(), await store.conversation()]
    async with opened(database_url) as other:
        for turn in range(10):
            outcomes = await asyncio.gather(
                *[
                    one.post(conversation, "text", key(str(turn), fingerprint=conversation))
                    for one, conversation in zip((store, other), conversations, strict=True)
                ],
                return_exceptions=True,
            )
            assert sorted(isinstance(outcome, KeyReused) for outcome in outcomes) == [False, True], outcomes
    assert sum([len(await store.check(conversation)) for conversation in conversations]) == 10


@pytest.mark.parametrize("same_conversation", [True, False])
async def test_a_duplicate_waits_for_the_first_to_be_committed(postgresql_url: str, same_conversation: bool) -> None:
    """The first has written its key and not committed yet, in a transaction that this test holds open."""
    async with opened(postgresql_url) as store:
        conversation = await store.conversation()
        second = conversation if same_conversation else await store.conversation()
        append = store.writes._new_messages(TENANT, conversation, DRAFTS, now(), many=False, key=key())
        arguments = commit_postgresql._arguments([append], patient=True)
        async with store.database.driver() as holder:
            transaction = holder.transaction()
            await transaction.start()
            await holder.fetch(commit_postgresql._CALL, *arguments)
            waiting = asyncio.create_task(
                store.writes.post(TENANT, second, DRAFTS, many=False, key=key(fingerprint="another request"))
            )

            async def waits() -> bool:
                return bool(
                    await store.execute(
                        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                    )
                )

            await until_true(waits)
            assert not waiting.done()
            await transaction.commit()
        with pytest.raises(KeyReused):
            await bounded(waiting)
        assert len(await store.check(conversation)) == 2


# Imports: a key stands for a place in the file that is being imported.


def _progress(before: int, lines: int) -> ImportProgress:
    return ImportProgress(before, lines, f"hash of {lines} lines")


async def _batch(store: Store, conversation: str, before: int, lines: int) -> Batch | Moved:
    at = now()
    messages = [prepare(conversation, Draft("user", f"line {n}"), at) for n in range(before, lines)]
    progress = _progress(before, lines)
    return await store.writes.post_batch(TENANT, conversation, messages, at, key=key(), progress=progress)


async def test_an_import_goes_on_where_it_stopped(store: Store) -> None:
    conversation = await store.conversation()
    await store.post(conversation, "before")
    assert await _batch(store, conversation, 0, 3) == Batch(2, 4, 4)
    await store.post(conversation, "in between")
    assert await _batch(store, conversation, 3, 5) == Batch(6, 7, 7)
    stored = Moved(5, "hash of 5 lines", 7, 2, 7)
    for before, lines in ((0, 3), (3, 5), (2, 6), (6, 8)):
        assert await _batch(store, conversation, before, lines) == stored
    assert await Keys(store.database).progress(TENANT, key()) == stored
    contents = [message["content"] for message in await store.check(conversation)]
    assert contents == ["before", "line 0", "line 1", "line 2", "in between", "line 3", "line 4"]


async def test_an_import_that_runs_twice_at_once_stores_each_line_once(store: Store, database_url: str) -> None:
    conversation = await store.conversation()

    async def run(one: Store) -> None:
        line = 0
        while line < 50:
            outcome = await _batch(one, conversation, line, line + 5)
            line = outcome.lines if isinstance(outcome, Moved) else line + 5

    async with opened(database_url) as other:
        await bounded(run(store), run(other), run(store), run(other))
    contents = [message["content"] for message in await store.check(conversation)]
    assert contents == [f"line {n}" for n in range(50)]


async def test_an_import_whose_key_has_expired_learns_that_nothing_is_stored_under_it(store: Store) -> None:
    conversation = await store.conversation()
    await _batch(store, conversation, 0, 3)
    await _expire_keys(store)
    assert await _batch(store, conversation, 3, 5) == Moved(0, "", 0, 0, 0)
    assert len(await store.check(conversation)) == 3


async def test_an_import_under_the_key_of_another_is_refused(store: Store) -> None:
    conversation = await store.conversation()
    await _batch(store, conversation, 0, 3)
    other, at = key(fingerprint="another file"), now()
    line = prepare(conversation, Draft("user", "line"), at)
    with pytest.raises(KeyReused):
        await store.writes.post_batch(TENANT, conversation, [line], at, key=other, progress=_progress(0, 1))
