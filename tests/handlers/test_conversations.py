"""Conversations over HTTP."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import update

from handlers.resources import DATABASE
from storage.records import now
from storage.rows import to_time
from storage.tables import conversations
from tests.api import Client, fault, new_conversation, post_messages, problem


async def test_a_conversation_is_made_and_found_where_its_location_says(client: Client) -> None:
    made = await client.post("/api/conversations", json={"title": "Release", "metadata": {"a": [1, 2.5, None, "é"]}})
    assert made.status == 201
    conversation = await made.json()
    assert conversation["title"] == "Release"
    assert conversation["metadata"] == {"a": [1, 2.5, None, "é"]}
    assert (conversation["message_count"], conversation["as_of"]) == (0, 0)
    assert conversation["created_at"].endswith("Z")
    found = await client.get(made.headers["Location"])
    assert await found.json() == conversation


async def test_an_idempotency_key_makes_one_conversation(client: Client) -> None:
    headers = {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(
        *(client.post("/api/conversations", json={"title": "once"}, headers=headers) for _ in range(5))
    )
    assert {answer.status for answer in answers} == {201}
    assert len({await answer.read() for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 4
    assert len({answer.headers["Location"] for answer in answers}) == 1
    listed = await (await client.get("/api/conversations")).json()
    assert len(listed["items"]) == 1


async def test_conversations_are_listed_by_activity_each_once(client: Client) -> None:
    ids = [await new_conversation(client, title=str(n)) for n in range(5)]
    database = client.app[DATABASE]
    async with database.transaction("test.backdate") as connection:
        # An activity within a second of the one before is not written down.
        for n, conversation_id in enumerate(ids):
            at = to_time(now() - timedelta(hours=9 - n), database.dialect)
            await connection.execute(
                update(conversations).where(conversations.c.id == conversation_id).values(last_activity_at=at)
            )
    await post_messages(client, ids[1], 1)
    seen, query = [], "?limit=2"
    while True:
        page = await (await client.get(f"/api/conversations{query}")).json()
        seen += [conversation["id"] for conversation in page["items"]]
        if page["next"] is None:
            break
        query = f"?limit=2&cursor={page['next']}"
    assert seen == [ids[1], ids[4], ids[3], ids[2], ids[0]]


async def test_what_an_edit_does_not_name_stays(client: Client) -> None:
    conversation_id = await new_conversation(client, title="old", metadata={"a": 1})
    path = f"/api/conversations/{conversation_id}"
    edited = await (await client.patch(path, json={"title": None})).json()
    assert (edited["title"], edited["metadata"]) == (None, {"a": 1})
    edited = await (await client.patch(path, json={"metadata": {"b": 2}})).json()
    assert (edited["title"], edited["metadata"]) == (None, {"b": 2})
    assert edited["as_of"] == 2
    found = await (await client.get(path)).json()
    assert found == edited


async def test_an_edit_of_nothing_is_422(client: Client) -> None:
    conversation_id = await new_conversation(client)
    assert await fault(await client.patch(f"/api/conversations/{conversation_id}", json={})) == "pointer "


async def test_a_deleted_conversation_is_gone_everywhere(client: Client) -> None:
    conversation_id = await new_conversation(client)
    message = (await post_messages(client, conversation_id, 1))[0]
    path = f"/api/conversations/{conversation_id}"
    deleted = await client.delete(path)
    assert deleted.status == 204
    assert await deleted.read() == b""
    for gone in (path, f"{path}/messages", f"/api/messages/{message['id']}"):
        await problem(await client.get(gone), 404)
    await problem(await client.delete(path), 404)
    await problem(await client.patch(path, json={"title": "x"}), 404)
    await problem(await client.post(f"{path}/messages", json={"role": "user", "content": "x"}), 404)
    assert (await (await client.get("/api/conversations")).json())["items"] == []
    assert (await (await client.get("/api/messages")).json())["items"] == []


@pytest.mark.parametrize("method", ["get", "patch", "delete"])
async def test_an_unknown_conversation_is_404(client: Client, method: str) -> None:
    body = {"title": "x"} if method == "patch" else None
    path = "/api/conversations/00000000-0000-7000-8000-000000000000"
    await problem(await client.request(method, path, json=body), 404)
