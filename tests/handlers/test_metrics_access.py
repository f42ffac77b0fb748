"""Who is shown the figures."""

from __future__ import annotations

import pytest

from tests.api import Client
from tests.raw import ask

TOKEN = "correct-horse.battery~staple/1=="


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One of the two: nothing here depends on which."""
    return sqlite_url


class TestWithAToken:
    @pytest.fixture
    def environment(self) -> dict[str, str]:
        return {"SWARM_METRICS_TOKEN": TOKEN}

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    async def test_who_brings_it_is_shown_them(self, client: Client, scheme: str) -> None:
        answer = await ask(client, "GET /metrics", f"Authorization: {scheme} {TOKEN}")
        assert answer.status == 200
        assert b"swarm_streams_open" in answer.body

    async def test_who_brings_none_is_told_what_is_needed(self, client: Client) -> None:
        for method in ("GET", "HEAD"):
            answer = await ask(client, f"{method} /metrics")
            assert (answer.status, answer.one("WWW-Authenticate")) == (401, "Bearer")
            assert b"swarm_streams_open" not in answer.body

    @pytest.mark.parametrize(
        "given",
        [f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, "", "Bearer é", "x"],
    )
    async def test_who_brings_another_is_refused(self, client: Client, given: str) -> None:
        answer = await ask(client, "GET /metrics", f"Authorization: {given}")
        assert (answer.status, answer.one("WWW-Authenticate")) == (401, 'Bearer error="invalid_token"')
        assert TOKEN.encode() not in answer.body

    async def test_two_are_one_too_many(self, client: Client) -> None:
        given = f"Authorization: Bearer {TOKEN}"
        assert (await ask(client, "GET /metrics", given, given)).status == 401

    async def test_it_opens_nothing_else_and_nothing_else_asks_for_it(self, client: Client) -> None:
        assert (await ask(client, "GET /api/agents")).status == 200


async def test_without_a_token_everybody_is(client: Client) -> None:
    assert (await ask(client, "GET /metrics", "Authorization: Bearer whatever")).status == 200
