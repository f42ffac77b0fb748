"""The group commit: who shares a transaction, and what one append's fate does to the others'."""

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import asyncpg
import msgspec
import pytest
from msgspec import Raw

from events.conversation_log import Draft
from storage.append import Append, Committed
from storage.errors import NotFound, StatementFailed, StorageError, StorageUnavailable, UnknownAgent
from storage.records import new_id, now
from tests.storage.store import TENANT, Json, Store, bounded, opened, until


def _deadlock() -> StorageUnavailable:
    """As `Database.operation` raises it."""
    error = StorageUnavailable("DeadlockDetectedError")
    error.__cause__ = asyncpg.DeadlockDetectedError("deadlock detected")
    return error


def _append(store: Store, conversation: str, content: str) -> Append:
    draft = Draft("user", content)
    return store.writes._new_messages(TENANT, conversation, [draft], now(), many=False, key=None)


async def _in_one_group(store: Store, *appends: Awaitable[Any]) -> list[asyncio.Task[Any]]:
    """Begins all of them while the only committer is held, and lets it go when all are waiting."""
    plug = await store.conversation("plug")
    groups = len(store.gate.groups)
    store.gate.hold()
    plugged = asyncio.create_task(store.post(plug, "plug"))
    await store.gate.arrived(groups + 1)
    tasks = [asyncio.ensure_future(append) for append in appends]
    await until(lambda: store.waiting == len(tasks))
    store.gate.release()
    await bounded(plugged)
    await bounded(asyncio.wait(tasks))
    assert len(store.gate.groups[groups + 1]) == len(tasks)
    return tasks


async def test_all_that_waits_is_committed_together(database_url: str) -> None:
    async with opened(database_url, committers=1) as store:
        conversations = [await store.conversation() for _ in range(5)]
        await _in_one_group(store, *[store.post(conversations[n % 5], str(n)) for n in range(50)])
        for number, conversation in enumerate(conversations):
            contents = [message["content"] for message in await store.check(conversation)]
            assert contents == [str(n) for n in range(number, 50, 5)]
        assert [len(group) for group in store.gate.groups] == [1, 50]


_FULL: dict[str, Any] = {
    "agent_id": "general_01",
    "model": "m",
    "usage": Raw(b'{"n":1}'),
    "tool_calls": Raw(b'[{"id":"1","name":"search"}]'),
    "metadata": Raw(b'{"a":1}'),
}
_OTHER: dict[str, Any] = {**_FULL, "agent_id": "coding_01", "model": "n", "usage": Raw(b"{}")}
_STREAMING: dict[str, Any] = {"agent_id": "general_01", "status": "streaming"}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([_FULL] * 3, id="all the same"),
        pytest.param([_FULL, {}, {}], id="the first alone"),
        pytest.param([{}, {}, _FULL], id="the last alone"),
        pytest.param([_FULL, _OTHER, _FULL], id="of two kinds"),
        pytest.param([_STREAMING] * 3, id="all stream"),
        pytest.param([_STREAMING, _FULL, {}], id="one streams"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
async def test_what_some_messages_of_a_group_share_is_no_other_ones(
    fields: list[dict[str, Any]], beside: bool, database_url: str
) -> None:
    """PostgreSQL is given once what is the same for all."""
    async with opened(database_url, committers=1) as store:
        conversations = [await store.conversation() for _ in range(2)]
        first = await store.post(conversations[0], "first")
        contents = ["" if each.get("status") == "streaming" else str(number) for number, each in enumerate(fields)]
        posts = [
            store.post(conversation, content, **each)
            for conversation in conversations
            for content, each in zip(contents, fields, strict=True)
        ]
        changes = [store.edit(first["id"], "changed")] if beside else []
        tasks = await _in_one_group(store, *posts[:3], *changes, *posts[3:])
        results: list[Json] = [task.result() for task in tasks]
        assert len(store.gate.groups) == len(["first", "plug", "all"])  # one that fails is tried again, in parts
        answers = [result for result in results if result["content"] != "changed"]
        assert (await store.check(conversations[0]))[1:] == answers[:3]
        assert await store.check(conversations[1]) == answers[3:]
        for message, each in zip(answers, fields * 2, strict=True):
            for name, value in each.items():
                assert message[name] == (msgspec.json.decode(value) if isinstance(value, Raw) else value)
        told = await store.execute("SELECT message_id, payload FROM events")
        assert len(told) == len(["first", "plug"]) + len(results)
        assert all(str(message_id) == json.loads(payload)["message"]["id"] for message_id, payload in told)


async def test_an_idle_committer_waits_for_nobody(store: Store) -> None:
    conversation = await store.conversation()
    for n in range(5):
        await store.post(conversation, str(n))
    assert [len(group) for group in store.gate.groups] == [1] * 5


async def test_a_refusal_is_its_own_appends_alone(database_url: str) -> None:
    async with opened(database_url, committers=1) as store:
        conversation, other = await store.conversation(), await store.conversation()
        tasks = await _in_one_group(
            store,
            store.post(conversation, "first"),
            store.post(conversation, "refused", agent_id="nobody"),
            store.post(new_id(), "nowhere"),
            store.post(other, "other"),
            store.post(conversation, "last"),
        )
        assert [type(task.exception()) for task in tasks[1:3]] == [UnknownAgent, NotFound]
        assert [message["content"] for message in await store.check(conversation)] == ["first", "last"]
        assert [message["content"] for message in await store.check(other)] == ["other"]
        everything = await store.everything()
        assert "refused" not in everything
        assert "nowhere" not in everything


async def test_a_group_that_fails_is_committed_one_by_one(database_url: str) -> None:
    async with opened(database_url, committers=1) as store:
        conversation, other = await store.conversation(), await store.conversation()
        tasks = [asyncio.create_task(store.post(place, str(n))) for n in range(4) for place in (conversation, other)]
        store.gate.failures.append(_deadlock())
        await bounded(*tasks)
        for place in (conversation, other):
            assert [message["content"] for message in await store.check(place)] == ["0", "1", "2", "3"]
        assert [len(group) for group in store.gate.groups] == [8] + [1] * 8
        assert len(store.committed) == 8


async def test_an_append_that_the_database_refuses_takes_nobody_with_it(database_url: str) -> None:
    async with opened(database_url, committers=1) as store:
        conversation = await store.conversation()
        taken = await store.post(conversation, "first")
        twin = _append(store, conversation, "poison")
        poison = msgspec.structs.replace(
            twin,
            messages=[msgspec.structs.replace(twin.messages[0], id=taken["id"])],
            events=[msgspec.structs.replace(twin.events[0], message_id=taken["id"])],
        )
        tasks = await _in_one_group(
            store,
            store.post(conversation, "before"),
            store.commits.submit(poison),
            store.post(conversation, "after"),
        )
        failure = tasks[1].exception()
        assert failure is not None
        assert not isinstance(failure, StorageError)  # a defect, not something that passes
        contents = [message["content"] for message in await store.check(conversation)]
        assert contents == ["first", "before", "after"]
        assert "poison" not in await store.everything()


async def test_text_that_postgresql_does_not_take_fails_alone(postgresql_url: str) -> None:
    async with opened(postgresql_url, committers=1) as store:
        conversation = await store.conversation()
        tasks = await _in_one_group(
            store,
            *[store.post(conversation, "a NUL\0" if n == 3 else str(n)) for n in range(7)],
        )
        failure = tasks[3].exception()
        assert isinstance(failure, StatementFailed)
        assert str(failure) == "log.commit: CharacterNotInRepertoireError 22021"
        contents = [message["content"] for message in await store.check(conversation)]
        assert contents == ["0", "1", "2", "4", "5", "6"]


async def test_a_database_that_says_it_is_away_is_not_asked_again(store: Store) -> None:
    conversation = await store.conversation()
    away = StorageUnavailable("no database connection became free in time")
    store.gate.failures += [away]
    with pytest.raises(StorageUnavailable):
        await store.post(conversation, "lost")
    assert len(store.gate.groups) == 1
    await store.post(conversation, "kept")
    assert [message["content"] for message in await store.check(conversation)] == ["kept"]


@pytest.mark.parametrize("failures", [0, 2])
async def test_a_client_that_goes_away_is_committed_all_the_same(database_url: str, failures: int) -> None:
    """Whether it was in flight or waiting, and even if its group fails after it has gone."""
    async with opened(database_url, committers=1) as store:
        conversation = await store.conversation()
        store.gate.hold()
        in_flight = asyncio.create_task(store.post(conversation, "in flight"))
        await store.gate.arrived()
        waiting = asyncio.create_task(store.post(conversation, "waiting"))
        await until(lambda: store.waiting == 1)
        for task in (in_flight, waiting):
            task.cancel()
        await asyncio.wait([in_flight, waiting])
        store.gate.failures += [_deadlock() for _ in range(failures)]
        store.gate.release()
        await until(lambda: len(store.committed) == 2)
        assert [message["content"] for message in await store.check(conversation)] == ["in flight", "waiting"]


async def test_a_listener_that_fails_costs_nobody_their_answer(store: Store) -> None:
    conversation = await store.conversation()

    def listener(append: Append, committed: Committed) -> None:
        raise RuntimeError("the listener is broken")

    store.commits._listener = listener
    messages = await bounded(*[store.post(conversation, str(n)) for n in range(5)])
    assert await store.check(conversation) == messages
