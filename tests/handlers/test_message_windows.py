"""Windows of messages over HTTP: places, links, tags."""

import re
from typing import Any

import pytest

from tests.api import Client, new_conversation, post_messages, problem


@pytest.fixture
async def path(client: Client) -> str:
    """The messages of a conversation that has ten."""
    conversation_id = await new_conversation(client)
    await post_messages(client, conversation_id, 10)
    return f"/api/conversations/{conversation_id}/messages"


async def window(client: Client, path: str) -> dict[str, Any]:
    response = await client.get(path)
    assert response.status == 200, await response.text()
    body: dict[str, Any] = await response.json()
    assert response.headers["Swarm-Total"] == str(body["total"])
    assert response.headers["Swarm-As-Of"] == str(body["as_of"])
    return body


@pytest.mark.parametrize(
    ("query", "positions", "previous", "following"),
    [
        ("", range(1, 11), None, None),
        ("?limit=3", range(8, 11), 8, None),
        ("?from=1&limit=3", range(1, 4), None, 3),
        ("?from=9&limit=3", range(9, 11), 9, None),
        ("?from=11", [], 11, None),
        ("?after=0&limit=2", range(1, 3), None, 2),
        ("?after=3&limit=2", range(4, 6), 4, 5),
        ("?after=10", [], 11, None),
        ("?after=9007199254740991", [], 11, None),
        ("?before=4&limit=2", range(2, 4), 2, 3),
        ("?before=1", [], None, 0),
        ("?before=9007199254740991&limit=2", range(9, 11), 9, None),
        ("?around=5&limit=3", range(4, 7), 4, 6),
        ("?around=1&limit=3", range(1, 4), None, 3),
        ("?around=10&limit=3", range(8, 11), 8, None),
    ],
)
async def test_a_window_lies_where_it_was_asked_for(
    client: Client, path: str, query: str, positions: Any, previous: int | None, following: int | None
) -> None:
    found = await window(client, path + query)
    assert [item["position"] for item in found["items"]] == list(positions)
    assert (found["total"], found["as_of"]) == (10, 10)
    assert (found["previous"], found["next"]) == (previous, following)


@pytest.mark.parametrize(("start", "name"), [("?from=1&limit=3", "next"), ("?limit=3", "prev")])
async def test_links_lead_through_the_whole_conversation(client: Client, path: str, start: str, name: str) -> None:
    positions: list[int] = []
    url: str | None = path + start
    while url is not None:
        response = await client.get(url)
        items = (await response.json())["items"]
        positions += [item["position"] for item in (items if name == "next" else reversed(items))]
        links = {found[2]: found[1] for found in re.finditer(r'<([^>]*)>; rel="(\w+)"', response.headers["Link"])}
        assert {"first", "last"} <= set(links)
        url = links.get(name)
    assert positions == (list(range(1, 11)) if name == "next" else list(range(10, 0, -1)))


async def test_a_conversation_without_messages_has_an_empty_window(client: Client) -> None:
    conversation_id = await new_conversation(client)
    for query in ("", "?from=1", "?after=0", "?before=1", "?around=7"):
        found = await window(client, f"/api/conversations/{conversation_id}/messages{query}")
        assert (found["items"], found["total"], found["previous"], found["next"]) == ([], 0, None, None)


async def test_a_window_that_is_at_hand_is_304_with_what_has_changed(client: Client, path: str) -> None:
    response = await client.get(f"{path}?from=1&limit=3")
    tag = response.headers["ETag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
    assert response.headers["Cache-Control"] == "private, no-cache"
    await post_messages(client, path.split("/")[3], 1)
    for given in (tag, f"W/{tag}", f'"other", {tag}', f' "x" ,W/{tag}', "*"):
        fresh = await client.get(f"{path}?from=1&limit=3", headers={"If-None-Match": given})
        assert fresh.status == 304
        assert await fresh.read() == b""
        assert fresh.headers["ETag"] == tag
        assert fresh.headers["Cache-Control"] == "private, no-cache"
        assert (fresh.headers["Swarm-Total"], fresh.headers["Swarm-As-Of"]) == ("11", "11")
        assert "Link" in fresh.headers
    for given in ('"other"', tag.strip('"'), f'"x{tag}"', "", "**"):
        stale = await client.get(f"{path}?from=1&limit=3", headers={"If-None-Match": given})
        assert stale.status == 200


async def test_tags_in_repeated_headers_count_too(client: Client, path: str) -> None:
    tag = (await client.get(path)).headers["ETag"]
    fresh = await client.get(path, headers=[("If-None-Match", '"x"'), ("If-None-Match", tag)])
    assert fresh.status == 304


async def test_an_edit_changes_the_tag(client: Client, path: str) -> None:
    before = await client.get(path)
    message = (await before.json())["items"][4]
    await client.patch(f"/api/messages/{message['id']}", json={"content": "edited"})
    after = await client.get(path, headers={"If-None-Match": before.headers["ETag"]})
    assert after.status == 200
    assert (await after.json())["items"][4]["content"] == "edited"


async def test_the_head_of_a_window_can_be_asked_for(client: Client, path: str) -> None:
    whole = await client.get(path)
    head = await client.head(path)
    assert head.status == 200
    assert await head.read() == b""
    assert head.headers["ETag"] == whole.headers["ETag"]
    assert head.headers["Content-Length"] == whole.headers["Content-Length"]


async def test_windows_of_an_unknown_conversation_are_404(client: Client) -> None:
    await problem(await client.get("/api/conversations/00000000-0000-7000-8000-000000000000/messages"), 404)
