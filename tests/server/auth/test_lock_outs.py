"""Whoever shows bad credentials from an address locks out who guesses there, and nobody who was known there before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from handlers.resources import CREDENTIALS
from tests.api import Client, problem
from tests.conftest import serving

_ADMIN = {"Authorization": f"Bearer {'b' * 40}"}


@pytest.fixture
async def client(sqlite_url: str) -> AsyncIterator[Client]:
    """Of a server that looks at each credential anew, and takes three bad ones an hour."""
    settings = {"SWARM_BOOTSTRAP_KEY": "b" * 40, "SWARM_RECHECK": "0.1", "SWARM_RATE_LIMIT_ADDRESS": "3/hour"}
    async with serving({"DATABASE_URL": sqlite_url, **settings}) as client:
        yield client


async def _key(client: Client) -> tuple[str, dict[str, str]]:
    made = await (await client.post("/api/keys", json={"name": "x", "scopes": ["read"]}, headers=_ADMIN)).json()
    return made["id"], {"Authorization": f"Bearer {made['key']}"}


async def _ask(client: Client, headers: dict[str, str]) -> int:
    async with client.get("/api/session", headers=headers) as answer:
        return answer.status


async def _lock_out(client: Client) -> None:
    """With guesses, until none is looked at any more."""
    async with asyncio.timeout(20):
        while await _ask(client, {"Authorization": "Bearer a guess"}) != 429:
            pass


async def test_who_was_known_is_looked_at_again(client: Client) -> None:
    _, known = await _key(client)
    _, unknown = await _key(client)
    assert await _ask(client, known) == 200
    await _lock_out(client)
    assert await _ask(client, unknown) == 429
    for _ in range(3):
        await asyncio.sleep(0.11)  # longer than it is believed without a look
        assert await _ask(client, known) == 200


async def test_who_was_known_and_is_good_no_more_is_a_guess_from_then_on(client: Client) -> None:
    key_id, known = await _key(client)
    assert await _ask(client, known) == 200
    await _lock_out(client)
    assert (await client.delete(f"/api/keys/{key_id}", headers=_ADMIN)).status == 204
    await problem(await client.get("/api/session", headers=known), 429)


async def test_who_was_revoked_elsewhere_is_looked_at_once_more(client: Client) -> None:
    key_id, known = await _key(client)
    assert await _ask(client, known) == 200
    await _lock_out(client)
    await client.app[CREDENTIALS].revoke_key("default", key_id, "another process")
    await asyncio.sleep(0.11)
    assert [await _ask(client, known) for _ in range(2)] == [401, 429]
