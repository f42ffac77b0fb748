"""Appends that follow one still on its way: sent before its outcome is known, and committed behind it or not at all."""

import asyncio

import asyncpg
import msgspec

from events.conversation_log import Draft
from storage.append import Append, Committed, Outcome, Refused
from storage.records import new_id, now
from tests.storage.store import TENANT, Store, bounded, opened, until, until_true

_LOCK = "SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE"
_WAIT_FOR_IT = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def _append(store: Store, conversation: str, content: str, *, follows: str | None = None, agent: str = "") -> Append:
    draft = Draft("agent", content, agent_id=agent) if agent else Draft("user", content)
    append = store.writes._new_messages(TENANT, conversation, [draft], now(), many=False, key=None)
    return msgspec.structs.replace(append, follows=follows)


def _message_id(append: Append) -> str:
    return append.messages[0].id


def _submitted(store: Store, *appends: Append) -> list[asyncio.Task[Outcome]]:
    return [asyncio.create_task(store.commits.submit(append)) for append in appends]


async def _waiting_for_locks(store: Store) -> int:
    [[count]] = await store.execute(_WAIT_FOR_IT)
    return int(count)


async def _contents(store: Store, conversation: str) -> list[str]:
    return [message["content"] for message in await store.check(conversation)]


async def test_one_waits_in_the_database_for_the_one_that_it_follows(postgresql_url: str) -> None:
    """A third one stays in the queue meanwhile, and so does what follows nothing; other conversations go on."""
    async with opened(postgresql_url, committers=4) as store:
        conversation, other = await store.conversation(), await store.conversation()
        first = _append(store, conversation, "1")
        second = _append(store, conversation, "2", follows=_message_id(first))
        third = _append(store, conversation, "3", follows=_message_id(second))
        tasks: list[asyncio.Task[Outcome]] = []
        holder = await asyncpg.connect(postgresql_url)

        try:
            async with holder.transaction():
                await holder.execute(_LOCK, conversation)
                for waiting, append in enumerate((first, second), 1):
                    tasks += _submitted(store, append)

                    async def they_wait(waiting: int = waiting) -> bool:
                        return await _waiting_for_locks(store) == waiting

                    await until_true(they_wait)
                tasks += _submitted(store, third, _append(store, conversation, "4"))
                await bounded(store.post(other, "free"), seconds=1.5)
                assert (await _waiting_for_locks(store), store.waiting) == (2, 2)
            outcomes = await bounded(*tasks)
        finally:
            await holder.close()
        contents = await _contents(store, conversation)
        assert [type(outcome) for outcome in outcomes[:2]] == [Committed] * 2
        assert contents.index("1") < contents.index("2")
        # The third one may find the lock free before the second one has woken.
        assert isinstance(outcomes[2], Committed) or outcomes[2] == Refused("unknown_reply", _message_id(second))
        assert ("3" in contents) == isinstance(outcomes[2], Committed)
        assert "4" in contents


async def test_what_follows_a_message_that_is_not_there_is_refused(store: Store) -> None:
    """Also where it is in another conversation."""
    conversation, other = await store.conversation(), await store.conversation()
    for missing in (new_id(), (await store.post(other, "other"))["id"]):
        outcome = await store.commits.submit(_append(store, conversation, "x", follows=missing))
        assert outcome == Refused("unknown_reply", missing)
    assert await _contents(store, conversation) == []


async def test_what_follows_one_that_is_refused_is_refused(database_url: str) -> None:
    async with opened(database_url) as store:
        conversation = await store.conversation()
        store.gate.hold()
        first = _append(store, conversation, "1", agent="nobody")
        tasks = _submitted(store, first)
        await store.gate.arrived()
        tasks += _submitted(store, _append(store, conversation, "2", follows=_message_id(first)))
        await until(lambda: len(store.gate.groups) + store.waiting == 2)  # SQLite has one committer
        store.gate.release()
        assert await bounded(*tasks) == [
            Refused("unknown_agent", "nobody"),
            Refused("unknown_reply", _message_id(first)),
        ]
        assert await _contents(store, conversation) == []


async def test_the_two_are_never_in_one_transaction(database_url: str) -> None:
    """The second one would not find the first."""
    async with opened(database_url, committers=1) as store:
        plug, conversation = await store.conversation(), await store.conversation()
        store.gate.hold()
        tasks = _submitted(store, _append(store, plug, "plug"))
        await store.gate.arrived()
        first = _append(store, conversation, "1")
        tasks += _submitted(
            store,
            first,
            _append(store, conversation, "2", follows=_message_id(first)),
            _append(store, conversation, "3"),
        )
        await until(lambda: store.waiting == 3)
        store.gate.release()
        assert [type(outcome) for outcome in await bounded(*tasks)] == [Committed] * 4
        assert [len(group) for group in store.gate.groups] == [1, 1, 2]
        assert await _contents(store, conversation) == ["1", "2", "3"]
