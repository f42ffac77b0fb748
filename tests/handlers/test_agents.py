"""The registry of agents over HTTP."""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient

from server import settings
from server.app import create_app
from tests.api import Client, fault, new_conversation, problem
from tests.served import Served

SHIPPED = ["bug_01", "coding_01", "general_01", "product_01"]
WRITER = {"name": "Writer", "role": "editor"}


async def listed(client: Client, query: str = "") -> list[str]:
    return [agent["id"] for agent in (await (await client.get(f"/api/agents{query}")).json())["items"]]


async def test_the_shipped_agents_are_there(client: Client) -> None:
    agents = (await (await client.get("/api/agents")).json())["items"]
    assert [agent["id"] for agent in agents] == SHIPPED
    assert [agent["role"] for agent in agents] == ["qa", "developer", "assistant", "product"]
    for agent in agents:
        assert all(agent[name] for name in ("name", "description", "system_prompt", "capabilities", "icon"))
        assert await (await client.get(f"/api/agents/{agent['id']}")).json() == agent


async def test_an_agent_is_made_then_replaced_as_a_whole(client: Client) -> None:
    made = await client.put("/api/agents/writer-2_x", json={**WRITER, "tools": ["files.read"], "model": "m"})
    assert made.status == 201
    agent = await made.json()
    assert agent["tools"] == ["files.read"]
    replaced = await client.put("/api/agents/writer-2_x", json=WRITER)
    assert replaced.status == 200
    assert (await replaced.json())["tools"] == []
    assert await (await client.get("/api/agents/writer-2_x")).json() == await replaced.json()
    assert await listed(client) == [*SHIPPED, "writer-2_x"]
    assert (await client.delete("/api/agents/writer-2_x")).status == 204
    await problem(await client.delete("/api/agents/writer-2_x"), 404)
    await problem(await client.get("/api/agents/writer-2_x"), 404)


async def test_a_shipped_agent_is_overridden_hidden_and_made_anew(client: Client) -> None:
    path = "/api/agents/bug_01"
    replaced = await client.put(path, json=WRITER)
    assert replaced.status == 200
    assert (await (await client.get(path)).json())["name"] == "Writer"
    assert await listed(client) == SHIPPED
    assert (await client.delete(path)).status == 204
    await problem(await client.get(path), 404)
    await problem(await client.delete(path), 404)
    assert await listed(client) == SHIPPED[1:]
    assert (await client.put(path, json=WRITER)).status == 201
    assert await listed(client) == SHIPPED


async def test_a_restart_does_not_bring_a_hidden_agent_back(client: Client, database_url: str) -> None:
    assert (await client.delete("/api/agents/coding_01")).status == 204
    app = create_app(settings.load({"DATABASE_URL": database_url}))
    async with TestClient[web.Request, web.Application](Served(app)) as again:
        async with asyncio.timeout(30):
            while (await again.get("/health/ready")).status != 200:
                await asyncio.sleep(0.01)
        assert await listed(again) == ["bug_01", "general_01", "product_01"]


async def test_a_hidden_agent_cannot_speak(client: Client) -> None:
    conversation_id = await new_conversation(client)
    message = {"role": "agent", "agent_id": "coding_01", "content": "x"}
    path = f"/api/conversations/{conversation_id}/messages"
    assert (await client.post(path, json=message)).status == 201
    await client.delete("/api/agents/coding_01")
    assert await fault(await client.post(path, json=message)) == "pointer /agent_id"
    await client.put("/api/agents/coding_01", json=WRITER)
    assert (await client.post(path, json=message)).status == 201


async def test_agents_are_paged_by_id_whatever_is_hidden(client: Client) -> None:
    for agent_id in ("a", "b-1", "b_1", "c", "coding_02", "z"):
        await client.put(f"/api/agents/{agent_id}", json=WRITER)
    await client.delete("/api/agents/coding_01")
    expected = ["a", "b-1", "b_1", "bug_01", "c", "coding_02", "general_01", "product_01", "z"]
    assert await listed(client) == expected
    for limit in range(1, 11):
        seen: list[str] = []
        query = f"?limit={limit}"
        while query:
            page: dict[str, Any] = await (await client.get(f"/api/agents{query}")).json()
            seen += [agent["id"] for agent in page["items"]]
            query = f"?limit={limit}&cursor={page['next']}" if page["next"] else ""
        assert seen == expected


async def test_an_idempotency_key_answers_as_it_did_first(client: Client) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await client.put("/api/agents/writer", json=WRITER, headers=headers)
    again = await client.put("/api/agents/writer", json=WRITER, headers=headers)
    assert (first.status, again.status) == (201, 201)
    assert await first.read() == await again.read()
    assert again.headers["Idempotency-Replayed"] == "true"
    headers = {"Idempotency-Key": "d"}
    assert (await client.delete("/api/agents/writer", headers=headers)).status == 204
    assert (await client.delete("/api/agents/writer", headers=headers)).status == 204


async def test_many_at_once_make_one_agent(client: Client) -> None:
    answers = await asyncio.gather(*(client.put("/api/agents/writer", json=WRITER) for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [200] * 9 + [201]
    gone = await asyncio.gather(*(client.delete("/api/agents/writer") for _ in range(10)))
    assert sorted(answer.status for answer in gone) == [204] + [404] * 9
    gone = await asyncio.gather(*(client.delete("/api/agents/bug_01") for _ in range(10)))
    assert sorted(answer.status for answer in gone) == [204] + [404] * 9


async def test_what_is_no_agent_is_refused(client: Client) -> None:
    assert await fault(await client.put("/api/agents/x", json={})) == "pointer /name"
    assert await fault(await client.put("/api/agents/x", json={**WRITER, "id": "y"})) == "pointer /id"
    assert await fault(await client.put("/api/agents/x", json={**WRITER, "name": ""})) == "pointer /name"
    assert await fault(await client.put("/api/agents/x", json={**WRITER, "tools": [""]})) == "pointer /tools/0"
    for unfit in ("X", "x" * 65, "not%20an%20id"):
        assert await fault(await client.put(f"/api/agents/{unfit}", json=WRITER)) == "parameter agent_id"
