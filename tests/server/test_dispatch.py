"""Routes are found by the parts of their paths, and refused as aiohttp refuses."""

from __future__ import annotations

import asyncio

import pytest

from tests.api import Client, problem

_ID = "01a219ee-e57d-76e1-8f39-0b4a97b3ae6b"


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/api",
        "/api/",
        "/api/conversations/",
        f"/api/conversations/{_ID}/",
        f"/api/conversations/{_ID}/messages/",
        "/api/conversations//messages",
        "/api//conversations",
        f"/api/conversations/{_ID}/messages/more",
        "/*",
        "/api/*",
        "/api/conversations/*",
        "/api/conversations/*/messages",
        "/api/agents/*",
        "/problems/*",
    ],
)
async def test_what_is_no_path_is_404(client: Client, path: str) -> None:
    assert (await problem(await client.get(path), 404))["type"] == "/problems/not-found"


async def test_an_empty_id_is_none(client: Client) -> None:
    await problem(await client.put("/api/agents/", json={"name": "x", "role": "x"}), 404)


async def test_another_method_is_405_with_those_that_are_there(client: Client) -> None:
    answer = await client.put("/api/conversations", json={})
    await problem(answer, 405)
    assert set(answer.headers["Allow"].replace(" ", "").split(",")) == {"GET", "HEAD", "POST"}
    await problem(await client.request("PROPFIND", "/api/conversations"), 405)


async def test_a_path_may_be_written_with_escapes(client: Client) -> None:
    made = await (await client.post("/api/conversations", json={"title": "t"})).json()
    escaped = made["id"].replace("a", "%61")
    for path in (f"/api/conversations/{escaped}", f"/api/%63onversations/{made['id']}"):
        answer = await client.get(path)
        assert (answer.status, (await answer.json())["id"]) == (200, made["id"])


async def test_a_client_that_expects_to_be_told_to_go_on_is_told(client: Client) -> None:
    """RFC 9110, 10.1.1."""
    head = (
        b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n"
    )
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
        writer.write(head + b"Expect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
        writer.close()
