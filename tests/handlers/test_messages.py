"""Messages over HTTP, posted, read, edited and deleted."""

import asyncio
import hashlib
from typing import Any

import msgspec
import pytest

from handlers import shapes
from tests.api import Client, fault, new_conversation, post_messages, problem

WHOLE: dict[str, Any] = {
    "role": "agent",
    "agent_id": "coding_01",
    "content": "naïve 😀",
    "model": "some-model",
    "tool_calls": [
        {
            "id": "call_1",
            "server": "files",
            "name": "read",
            "arguments": {"path": "/x"},
            "result": ["a", 1, None],
            "is_error": False,
            "started_at": "2026-01-01T02:00:00+02:00",
            "ended_at": "2026-01-01T00:00:01Z",
        }
    ],
    "usage": {"input_tokens": 12, "cost": 0.25},
    "metadata": {"nested": {"deep": [True, False, "\u2028", 18446744073709551615]}},
    "status": "complete",
}


async def test_a_message_is_kept_whole(client: Client) -> None:
    conversation_id = await new_conversation(client)
    posted = await client.post(f"/api/conversations/{conversation_id}/messages", json=WHOLE)
    assert posted.status == 201, await posted.text()
    message = await posted.json()
    for name in ("role", "agent_id", "content", "model", "usage", "metadata", "status"):
        assert message[name] == WHOLE[name]
    assert message["tool_calls"] == [{**WHOLE["tool_calls"][0], "started_at": "2026-01-01T00:00:00Z"}]
    assert message["position"] == 1
    assert message["length"] == 8  # what a browser's String.length says: the emoji is two
    assert message["sha256"] == hashlib.sha256(WHOLE["content"].encode()).hexdigest()
    found = await client.get(posted.headers["Location"])
    assert await found.read() == await posted.read()
    msgspec.json.decode(await posted.read(), type=shapes.Message)


async def test_an_array_is_stored_in_its_order_all_or_none(client: Client) -> None:
    conversation_id = await new_conversation(client)
    items = await post_messages(client, conversation_id, 1_000)
    assert [item["position"] for item in items] == list(range(1, 1_001))
    path = f"/api/conversations/{conversation_id}/messages"
    refused = await client.post(
        path, json=[{"role": "user", "content": "x"}, {"role": "agent", "content": "x", "agent_id": "nobody"}]
    )
    assert await fault(refused) == "pointer /1/agent_id"
    too_many = await client.post(path, json=[{"role": "user", "content": "x"}] * 1_001)
    assert await fault(too_many) == "pointer "
    assert (await (await client.get(path)).json())["total"] == 1_000


async def test_an_answer_names_a_message_of_its_conversation(client: Client) -> None:
    conversation_id, elsewhere = await new_conversation(client), await new_conversation(client)
    first = (await post_messages(client, conversation_id, 1))[0]["id"]
    other = (await post_messages(client, elsewhere, 1))[0]["id"]
    path = f"/api/conversations/{conversation_id}/messages"
    answer = await client.post(path, json={"role": "user", "content": "x", "reply_to": first.upper()})
    assert (await answer.json())["reply_to"] == first
    refused = await client.post(path, json={"role": "user", "content": "x", "reply_to": other})
    assert await fault(refused) == "pointer /reply_to"
    refused = await client.post(path, json=[{"role": "user", "content": "x", "reply_to": other}])
    assert await fault(refused) == "pointer /0/reply_to"


async def test_an_idempotency_key_posts_once(client: Client) -> None:
    conversation_id = await new_conversation(client)
    path = f"/api/conversations/{conversation_id}/messages"
    answers = await asyncio.gather(
        *(
            client.post(path, json={"role": "user", "content": "once"}, headers={"Idempotency-Key": "k"})
            for _ in range(5)
        )
    )
    assert len({await answer.read() for answer in answers}) == 1
    assert len({answer.headers["Location"] for answer in answers}) == 1
    assert (await (await client.get(path)).json())["total"] == 1


async def test_the_newest_messages_come_from_all_conversations_each_once(client: Client) -> None:
    ids = [await new_conversation(client) for _ in range(2)]
    for _ in range(3):
        for conversation_id in ids:
            await post_messages(client, conversation_id, 1)
    whole = (await (await client.get("/api/messages")).json())["items"]
    assert [item["conversation_id"] for item in whole] == ids[::-1] * 3
    seen, query = [], "?limit=4"
    while query:
        page = await (await client.get(f"/api/messages{query}")).json()
        seen += page["items"]
        query = f"?limit=4&cursor={page['next']}" if page["next"] else ""
    assert seen == whole


async def test_an_edit_changes_what_it_names(client: Client) -> None:
    conversation_id = await new_conversation(client)
    message = (await post_messages(client, conversation_id, 1))[0]
    path = f"/api/messages/{message['id']}"
    edited = await (await client.patch(path, json={"content": "né"})).json()
    assert (edited["content"], edited["length"], edited["metadata"]) == ("né", 2, {})
    assert edited["sha256"] == hashlib.sha256("né".encode()).hexdigest()
    edited = await (await client.patch(path, json={"metadata": {"seen": True}})).json()
    assert (edited["content"], edited["metadata"]) == ("né", {"seen": True})
    assert await fault(await client.patch(path, json={})) == "pointer "
    assert await fault(await client.patch(path, json={"role": "agent"})) == "pointer /role"


async def test_a_deleted_message_keeps_its_position_without_its_text(client: Client) -> None:
    conversation_id = await new_conversation(client)
    first, second = await post_messages(client, conversation_id, 2)
    path = f"/api/messages/{first['id']}"
    assert (await client.delete(path)).status == 204
    assert (await client.delete(path)).status == 204
    found = await (await client.get(path)).json()
    assert (found["status"], found["content"], found["position"]) == ("deleted", "", 1)
    await problem(await client.patch(path, json={"content": "again"}), 409)
    window = await (await client.get(f"/api/conversations/{conversation_id}/messages")).json()
    assert [item["id"] for item in window["items"]] == [first["id"], second["id"]]
    assert window["total"] == 2


@pytest.mark.parametrize("method", ["get", "patch", "delete"])
async def test_an_unknown_message_is_404(client: Client, method: str) -> None:
    body = {"content": "x"} if method == "patch" else None
    await problem(await client.request(method, "/api/messages/00000000-0000-7000-8000-000000000000", json=body), 404)


async def test_ndjson_is_imported(client: Client) -> None:
    conversation_id = await new_conversation(client)
    lines = b"".join(msgspec.json.encode({"role": "user", "content": str(n)}) + b"\n" for n in range(3))
    imported = await client.post(
        f"/api/conversations/{conversation_id}/messages",
        data=lines,
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert imported.status == 200
    result = await imported.json()
    assert (result["accepted"], result["first_position"], result["last_position"]) == (3, 1, 3)
