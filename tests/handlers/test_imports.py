"""Imports in which a line is refused by the database, and imports that meet under one key."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from handlers.resources import KEYS
from storage.append import Moved, WriteKey
from tests.api import Client, new_conversation, problem

NDJSON = {"Content-Type": "application/x-ndjson"}
REFUSED = frozenset({"line", "accepted"})


def _ndjson(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _said(count: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": str(n + 1)} for n in range(count)]


def _signal_begun(client: Client, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when an import has asked what is stored under its key."""
    begun, progress = asyncio.Event(), client.app[KEYS].progress

    async def asked(tenant: str, key: WriteKey) -> Moved | None:
        known = await progress(tenant, key)
        begun.set()
        return known

    monkeypatch.setattr(client.app[KEYS], "progress", asked)
    return begun


async def _held(first: bytes, go_on: asyncio.Event, rest: bytes) -> AsyncIterator[bytes]:
    yield first
    await go_on.wait()
    yield rest


async def _contents(client: Client, path: str) -> list[str]:
    answer = await client.get(path)
    return [item["content"] for item in (await answer.json())["items"]]


@pytest.mark.parametrize(
    "first",
    [
        {"role": "agent", "content": "x", "agent_id": "zoe"},
        {"role": "user", "content": "x", "reply_to": "01a20866-be7a-7520-b2b2-05177c225313"},
    ],
    ids=["agents", "an agent and a reply"],
)
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "k"}], ids=["without a key", "with a key"])
async def test_of_several_lines_that_are_refused_the_first_is_named(
    client: Client, first: dict[str, Any], key: dict[str, str]
) -> None:
    """In whichever order the database finds them."""
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    lines = _said(8)
    lines[2:2] = [first]
    lines[6:6] = [{"role": "agent", "content": "x", "agent_id": "adam"}]
    document = await problem(await client.post(path, data=_ndjson(lines), headers=NDJSON | key), 422, REFUSED)
    assert (document["line"], document["accepted"]) == (3, 2)
    assert await _contents(client, path) == ["1", "2"]


async def test_what_another_import_under_the_key_has_stored_is_not_stored_again_before_a_refused_line(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both began when nothing was stored; the second one's lines come when the first one is done."""
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    lines = [*_said(7), {"role": "agent", "content": "x", "agent_id": "nobody"}]
    headers = NDJSON | {"Idempotency-Key": "k"}
    begun, go_on = _signal_begun(client, monkeypatch), asyncio.Event()

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        body = _held(_ndjson(lines[:1]), go_on, _ndjson(lines[1:]))
        second = group.create_task(client.post(path, data=body, headers=headers))
        await begun.wait()
        document = await problem(await client.post(path, data=_ndjson(lines), headers=headers), 422, REFUSED)
        assert (document["line"], document["accepted"]) == (8, 7)
        go_on.set()
    document = await problem(second.result(), 422, REFUSED)
    assert (document["line"], document["accepted"]) == (8, 7)
    assert await _contents(client, path) == [str(n + 1) for n in range(7)]


@pytest.mark.parametrize("same", [True, False], ids=["the same lines", "other lines"])
async def test_an_import_that_another_one_is_far_ahead_of_skips_what_is_there(
    client: Client, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """By more than one batch: it cannot know yet whether the lines will be the same."""
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    lines = _said(1_200)
    headers = NDJSON | {"Idempotency-Key": "k"}
    begun, go_on = _signal_begun(client, monkeypatch), asyncio.Event()
    mine = [line | ({} if same or n != 900 else {"content": "other"}) for n, line in enumerate(lines)]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        body = _held(_ndjson(mine[:1]), go_on, _ndjson(mine[1:]))
        second = group.create_task(client.post(path, data=body, headers=headers))
        await begun.wait()
        first = await client.post(path, data=_ndjson(lines), headers=headers)
        assert first.status == 200
        go_on.set()
    answer = second.result()
    if same:
        assert (answer.status, await answer.json()) == (200, await first.json())
    else:
        assert (await problem(answer, 422))["errors"][0]["header"] == "Idempotency-Key"
    window = await (await client.get(path)).json()
    assert window["total"] == 1_200


@pytest.mark.parametrize("by", ["database", "parser"])
@pytest.mark.parametrize("later", [True, False], ids=["and a later one", "and no later one"])
async def test_of_batches_that_are_read_while_others_are_committed_the_first_refused_line_is_named(
    client: Client, by: str, later: bool
) -> None:
    """And nothing that comes after it is stored."""
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    nobody = b'{"role":"agent","content":"x","agent_id":"nobody"}\n'
    lines = [*(msgspec.json.encode(line) + b"\n" for line in _said(1_700))]
    lines[699] = nobody if by == "database" else b"{\n"
    if later:
        lines[1_299] = nobody
    document = await problem(await client.post(path, data=b"".join(lines), headers=NDJSON), 422, REFUSED)
    assert (document["line"], document["accepted"]) == (700, 699)
    window = await (await client.get(path)).json()
    assert window["total"] == 699


async def test_what_comes_slowly_is_stored_while_the_rest_is_on_its_way(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.import_batches._BATCH_SECONDS", 0.0)
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    go_on = asyncio.Event()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        body = _held(_ndjson(_said(3)), go_on, _ndjson(_said(1)))
        slow = group.create_task(client.post(path, data=body, headers=NDJSON))
        while await _contents(client, path) != ["1", "2"]:
            await asyncio.sleep(0.01)
        go_on.set()
    answer = await slow.result().json()
    assert (answer["accepted"], answer["first_position"], answer["last_position"]) == (4, 1, 4)
    assert await _contents(client, path) == ["1", "2", "3", "1"]
