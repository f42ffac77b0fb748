"""What tests of the REST interface say often."""

from typing import Any

import msgspec
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient

from handlers.problem import MEDIA_TYPE

Client = TestClient[Any, web.Application]

_MEMBERS = {"type", "title", "status", "detail", "instance", "request_id", "errors"}
_PLACES = ("pointer", "parameter", "header")


async def new_conversation(client: Client, **fields: Any) -> str:
    """The id of a conversation made for the test."""
    made = await client.post("/api/conversations", json=fields)
    assert made.status == 201, await made.text()
    return str((await made.json())["id"])


async def post_messages(client: Client, conversation_id: str, count: int) -> list[dict[str, Any]]:
    """Messages of a user, whose contents are their positions."""
    posted = await client.post(
        f"/api/conversations/{conversation_id}/messages",
        json=[{"role": "user", "content": str(n + 1)} for n in range(count)],
    )
    assert posted.status == 201, await posted.text()
    return list((await posted.json())["items"])


async def problem(response: ClientResponse, status: int, members: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The problem document of an error, whose shape is always the same; `members` are further ones."""
    body = await response.read()
    assert response.status == status, body
    assert response.content_type == MEDIA_TYPE
    document: dict[str, Any] = msgspec.json.decode(body)
    assert set(document) == _MEMBERS | members
    assert document["status"] == status
    assert document["type"].startswith("/problems/")
    assert document["request_id"] == response.headers["X-Request-ID"]
    for fault in document["errors"]:
        assert fault["detail"]
        assert sum(place in fault for place in _PLACES) == 1
    return document


async def fault(response: ClientResponse, status: int = 422) -> str:
    """Where the first fault of a problem lies: `pointer /content`, say."""
    first = (await problem(response, status))["errors"][0]
    return next(f"{place} {first[place]}" for place in _PLACES if place in first)
