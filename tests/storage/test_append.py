"""Posting: what a conversation looks like afterwards, and what is refused."""

import asyncio
import hashlib
import json
from datetime import datetime, timedelta

import pytest
from msgspec import Raw

from events.conversation_log import Draft
from storage.agents import AgentRows
from storage.errors import NotFound, UnknownAgent, UnknownReply
from storage.records import new_id, now
from storage.rows import sqlite_time
from tests.storage.store import SHIPPED, TENANT, Store, bounded

OTHER = "another tenant"


async def test_one_message_gets_the_first_position_and_seq(store: Store) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, "héllo 😀", model="m", metadata=Raw(b'{"a":1}'), usage=Raw(b'{"n":2}'))
    assert message["position"] == 1
    assert message["content"] == "héllo 😀"
    assert message["status"] == "complete"
    assert message["length"] == 8  # UTF-16 code units
    assert message["sha256"] == hashlib.sha256("héllo 😀".encode()).hexdigest()
    assert (message["metadata"], message["usage"], message["model"]) == ({"a": 1}, {"n": 2}, "m")
    assert await store.check(conversation) == [message]
    [(append, seq, position)] = store.committed
    assert (append.conversation_id, seq, position) == (conversation, 1, 1)


async def test_many_messages_are_one_append_in_their_order(store: Store) -> None:
    conversation = await store.conversation()
    await store.post(conversation, "before")
    items = await store.post_many(conversation, [f"number {n}" for n in range(40)])
    assert [item["position"] for item in items] == list(range(2, 42))
    assert [item["content"] for item in items] == [f"number {n}" for n in range(40)]
    assert (await store.check(conversation))[1:] == items
    assert len(store.committed) == 2


async def test_text_that_looks_like_a_template_or_like_sql_stays_as_it_is(store: Store) -> None:
    conversation = await store.conversation()
    texts = [
        "\x01 \x02",
        "\\u0001 \\u0002",
        "'; DROP TABLE messages; --",
        "$1 ? :a %s",
        '"]}\n\n',
        "\u2028\ufeff\x7f",
        "",
    ]
    items = await store.post_many(conversation, texts)
    assert [item["content"] for item in items] == texts
    assert [message["content"] for message in await store.check(conversation)] == texts


async def test_seqs_and_positions_are_dense_under_many_posters(store: Store) -> None:
    conversations = [await store.conversation() for _ in range(6)]

    async def poster(number: int) -> list[tuple[str, int, str]]:
        acknowledged = []
        for turn in range(8):
            conversation = conversations[(number + turn) % len(conversations)]
            if turn % 4 == 3:
                items = await store.post_many(conversation, [f"{number}.{turn}.{n}" for n in range(3)])
            else:
                items = [await store.post(conversation, f"{number}.{turn}")]
            acknowledged += [(conversation, item["position"], item["content"]) for item in items]
        return acknowledged

    acknowledged = [line for lines in await bounded(*map(poster, range(64))) for line in lines]
    assert len(acknowledged) == 64 * 12
    stored = [
        (conversation, message["position"], message["content"])
        for conversation in conversations
        for message in await store.check(conversation)
    ]
    assert sorted(stored) == sorted(acknowledged)


async def test_what_one_poster_says_keeps_its_order(store: Store) -> None:
    conversation = await store.conversation()
    await bounded(*[store.post(conversation, str(n)) for n in range(100)])
    assert [message["content"] for message in await store.check(conversation)] == [str(n) for n in range(100)]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_all_are_stored_or_none(store: Store, place: int) -> None:
    conversation = await store.conversation()
    drafts = [Draft("user", "fine") for _ in range(3)]
    drafts[place] = Draft("agent", "not fine", agent_id="nobody")
    with pytest.raises(UnknownAgent) as refused:
        await store.writes.post(TENANT, conversation, drafts, many=True, key=None)
    assert refused.value.agent_id == "nobody"
    assert await store.check(conversation) == []
    assert store.committed == []


async def test_a_tenant_reaches_nothing_of_another(store: Store) -> None:
    conversation = await store.conversation("mine")
    message = await store.post(conversation, "mine")
    theirs = await store.conversation(tenant=OTHER)
    writes = store.writes
    for refused in (
        writes.post(OTHER, conversation, [Draft("user", "theirs")], many=False, key=None),
        writes.edit(OTHER, message["id"], content="theirs", metadata=None, key=None),
        writes.delete(OTHER, message["id"], key=None),
        writes.update_conversation(OTHER, conversation, title="theirs", metadata=Raw(b"{}"), key=None),
        writes.delete_conversation(OTHER, conversation, key=None),
        store.window(conversation, tenant=OTHER),
        store.log.page(OTHER, conversation, 0, limit=10, budget=1_000),
        store.messages.get(OTHER, message["id"]),
        store.conversations.get(OTHER, conversation),
    ):
        with pytest.raises(NotFound):
            await refused
    with pytest.raises(UnknownReply):
        reply = Draft("user", "re", reply_to=message["id"])
        await writes.post(OTHER, theirs, [reply], many=False, key=None)
    assert (await store.log.moved([(OTHER, conversation, 0)])).moved == []
    assert (await store.messages.newest(OTHER, 10, None))[0] == []
    assert [found.id for found in (await store.conversations.page(OTHER, 10, None))[0]] == [theirs]
    assert await store.check(conversation) == [message]
    assert (await store.conversations.get(TENANT, conversation)).title == "mine"


async def test_there_is_no_posting_to_a_conversation_that_does_not_exist(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.post(new_id(), "hello?")


async def test_agents_that_write_are_shipped_or_the_tenants_own(store: Store) -> None:
    conversation = await store.conversation()
    agents = AgentRows(store.database, SHIPPED)
    await agents.put(TENANT, "of_ours", b"{}", None)
    for agent in ("general_01", "of_ours"):
        drafts = [Draft("agent", "hello", agent_id=agent)]
        answer = await store.writes.post(TENANT, conversation, drafts, many=False, key=None)
        assert json.loads(answer.body)["agent_id"] == agent
    elsewhere = await store.conversation(tenant=OTHER)
    with pytest.raises(UnknownAgent):
        await store.writes.post(OTHER, elsewhere, [Draft("agent", "", agent_id="of_ours")], many=False, key=None)


async def test_a_hidden_agent_cannot_write_until_it_is_put_back(store: Store) -> None:
    conversation = await store.conversation()
    agents = AgentRows(store.database, SHIPPED)
    await agents.delete(TENANT, "general_01", None)
    with pytest.raises(UnknownAgent):
        await store.post(conversation, "hello", agent_id="general_01")
    await store.post(conversation, "hello", agent_id="coding_01")
    await agents.put(TENANT, "general_01", b"{}", None)
    await store.post(conversation, "hello", agent_id="general_01")
    assert len(await store.check(conversation)) == 2


async def test_an_answer_is_to_a_message_of_the_same_conversation(store: Store) -> None:
    conversation, other = await store.conversation(), await store.conversation()
    question = await store.post(conversation, "why?")
    answer = await store.post(conversation, "because", reply_to=question["id"])
    assert answer["reply_to"] == question["id"]
    unknown = new_id()
    for place, message_id in ((conversation, unknown), (other, question["id"])):
        with pytest.raises(UnknownReply) as refused:
            await store.post(place, "because", reply_to=message_id)
        assert refused.value.message_id == message_id
    assert await store.check(conversation) == [question, answer]
    assert await store.check(other) == []


async def test_the_last_activity_moves_at_most_once_a_second(store: Store) -> None:
    conversation = await store.conversation()

    async def last_activity() -> datetime:
        return (await store.conversations.get(TENANT, conversation)).last_activity_at

    in_an_hour = now() + timedelta(hours=1)
    for before, moves in ((in_an_hour, False), (now(), False), (now() - timedelta(seconds=1), True)):
        stored = sqlite_time(before) if store.database.dialect == "sqlite" else before
        await store.execute("UPDATE conversations SET last_activity_at = :at", at=stored)
        message = await store.post(conversation, "hello")
        posted = datetime.fromisoformat(message["created_at"])
        # On a machine that stood still for a second in between, it may have moved.
        assert await last_activity() == (posted if moves or posted - before >= timedelta(seconds=1) else before)


async def test_a_client_that_goes_away_cancels_nothing(store: Store) -> None:
    conversation = await store.conversation()
    store.gate.hold()
    leaving = asyncio.create_task(store.post(conversation, "said, and gone"))
    await store.gate.arrived()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    staying = asyncio.create_task(store.post(conversation, "still here"))
    store.gate.release()
    assert (await bounded(staying))[0]["position"] == 2
    assert [message["content"] for message in await store.check(conversation)] == ["said, and gone", "still here"]
