"""Windows from memory over HTTP, in two processes on one database: one that keeps them, and one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from handlers.resources import DATABASE
from storage.timeline import new_epoch
from tests.api import Client, new_conversation, post_messages, problem
from tests.conftest import serving
from tests.figures import read_figures

SHOWN = ("ETag", "Link", "Swarm-Total", "Swarm-As-Of", "Cache-Control", "Content-Type", "Content-Length")


@pytest.fixture
async def keeping(database_url: str) -> AsyncIterator[Client]:
    async with serving({"DATABASE_URL": database_url}) as client:
        yield client


@pytest.fixture
async def reading(database_url: str) -> AsyncIterator[Client]:
    """Reads each window."""
    async with serving({"DATABASE_URL": database_url, "SWARM_CACHE_BYTES": "0"}) as client:
        yield client


async def _window(client: Client, path: str, **headers: str) -> tuple[int, bytes, list[str | None]]:
    response = await client.get(path, headers=headers)
    return response.status, await response.read(), [response.headers.get(name) for name in SHOWN]


async def _outcomes(client: Client) -> tuple[float, ...]:
    figures = await read_figures(client)
    return tuple(figures.get("swarm_cache_reads_total", outcome=outcome) for outcome in ("hit", "miss", "stale"))


@pytest.mark.parametrize(
    "query", ["", "?limit=3", "?from=4&limit=3", "?after=3", "?before=9&limit=2", "?around=5&limit=4", "?from=11"]
)
async def test_a_window_from_memory_is_the_one_that_is_read(keeping: Client, reading: Client, query: str) -> None:
    conversation_id = await new_conversation(reading)
    await post_messages(reading, conversation_id, 10)
    path = f"/api/conversations/{conversation_id}/messages{query}"
    read = await _window(reading, path)
    assert read[0] == 200
    assert [await _window(keeping, path) for _ in range(3)] == [read] * 3
    tag = read[2][0]
    assert tag is not None
    fresh = await _window(keeping, path, **{"If-None-Match": tag})
    assert fresh == await _window(reading, path, **{"If-None-Match": tag})
    assert fresh[0] == 304


async def _append(client: Client, conversation_id: str, message_id: str) -> None:
    await post_messages(client, conversation_id, 2)


async def _edit(client: Client, conversation_id: str, message_id: str) -> None:
    assert (await client.patch(f"/api/messages/{message_id}", json={"content": "edited"})).status == 200


async def _delete(client: Client, conversation_id: str, message_id: str) -> None:
    assert (await client.delete(f"/api/messages/{message_id}")).status == 204


async def _stream(client: Client, conversation_id: str, message_id: str) -> None:
    path = f"/api/conversations/{conversation_id}/messages"
    made = await (await client.post(path, json={"role": "user", "status": "streaming"})).json()
    delta = {"offset": 0, "text": "so far"}
    assert (await client.post(f"/api/messages/{made['id']}/deltas", json=delta)).status == 200


@pytest.mark.parametrize("write", [_append, _edit, _delete, _stream])
async def test_what_the_other_process_has_acknowledged_is_shown(
    keeping: Client, reading: Client, write: Callable[[Client, str, str], Awaitable[None]]
) -> None:
    conversation_id = await new_conversation(reading)
    first, *_ = await post_messages(reading, conversation_id, 3)
    path = f"/api/conversations/{conversation_id}/messages"
    before = [await _window(keeping, path) for _ in range(2)][-1]
    await write(reading, conversation_id, first["id"])
    after = await _window(keeping, path)
    assert after != before
    assert after == await _window(reading, path)


async def test_a_finish_in_the_other_process_is_shown(keeping: Client, reading: Client) -> None:
    conversation_id = await new_conversation(reading)
    path = f"/api/conversations/{conversation_id}/messages"
    made = await (await reading.post(path, json={"role": "user", "status": "streaming"})).json()
    for offset in range(3):
        delta = {"offset": offset, "text": "x"}
        assert (await reading.post(f"/api/messages/{made['id']}/deltas", json=delta)).status == 200
        assert await _window(keeping, path) == await _window(reading, path)
    assert (await reading.post(f"/api/messages/{made['id']}/finish", json={"status": "complete"})).status == 200
    body: dict[str, Any] = await (await keeping.get(path)).json()
    assert [(item["content"], item["status"]) for item in body["items"]] == [("xxx", "complete")]


async def test_a_conversation_that_the_other_process_deletes_is_404_at_once(keeping: Client, reading: Client) -> None:
    conversation_id = await new_conversation(reading)
    await post_messages(reading, conversation_id, 3)
    path = f"/api/conversations/{conversation_id}/messages"
    assert [(await _window(keeping, path))[0] for _ in range(2)] == [200, 200]
    assert (await reading.delete(f"/api/conversations/{conversation_id}")).status == 204
    for _ in range(2):
        await problem(await keeping.get(path), 404)
    assert (await read_figures(keeping)).get("swarm_cache_bytes") == 0


async def test_a_new_timeline_outdates_what_is_kept(keeping: Client, reading: Client) -> None:
    conversation_id = await new_conversation(reading)
    await post_messages(reading, conversation_id, 3)
    path = f"/api/conversations/{conversation_id}/messages"
    for _ in range(2):
        await _window(keeping, path)
    assert await _outcomes(keeping) == (1, 1, 0)
    await asyncio.to_thread(new_epoch, reading.app[DATABASE].config)
    for _ in range(2):
        assert await _window(keeping, path) == await _window(reading, path)
    assert await _outcomes(keeping) == (2, 1, 1)


async def test_hits_and_misses_and_what_is_stale_are_counted(keeping: Client, reading: Client) -> None:
    conversation_id = await new_conversation(reading)
    await post_messages(reading, conversation_id, 3)
    path = f"/api/conversations/{conversation_id}/messages"
    for _ in range(5):
        await _window(keeping, path)
    await post_messages(reading, conversation_id, 1)
    for _ in range(3):
        await _window(keeping, path)
        await _window(reading, path)
    assert await _outcomes(keeping) == (6, 1, 1)
    assert await _outcomes(reading) == (0, 3, 0)
    _, body, _ = await _window(keeping, path)
    kept = [(await read_figures(client)).get("swarm_cache_bytes") for client in (keeping, reading)]
    assert len(body) < kept[0] < len(body) + 2_000
    assert kept[1] == 0
