"""Sessions and tickets that came from no key: they end when what they came from is not believed any more."""

from __future__ import annotations

import time

import pytest

from server import settings
from server.setting import SettingError
from tests.api import Client, problem
from tests.conftest import serving
from tests.server.auth.issuer import SECRET, signed
from tests.server.auth.issuer import key as key_of

_BOOTSTRAP = {"SWARM_BOOTSTRAP_KEY": "b" * 40}


def _token() -> dict[str, str]:
    claims = {"sub": "ann", "tenant": "acme", "scope": "read", "exp": time.time() + 600}
    return {"Authorization": f"Bearer {signed('HS256', key_of('secret'), {'alg': 'HS256'}, claims)}"}


async def _given(client: Client, headers: dict[str, str]) -> tuple[dict[str, str], str]:
    """A session's cookie, and a ticket that was given for it."""
    began = await client.post("/api/session", headers=headers)
    assert began.status == 201, await began.text()
    cookie = {"Cookie": began.headers["Set-Cookie"].partition(";")[0], "Sec-Fetch-Site": "same-origin"}
    given = await client.post("/api/tickets", json={"feed": True}, headers=cookie)
    assert given.status == 201, await given.text()
    return cookie, str((await given.json())["ticket"])


@pytest.mark.parametrize(
    ("before", "after", "are_good"),
    [
        ({}, {}, True),
        ({}, _BOOTSTRAP, False),
        ({}, {"SWARM_REQUIRE_CREDENTIALS": "1"}, False),
        ({"SWARM_JWT_SECRET": SECRET}, {"SWARM_JWT_SECRET": SECRET}, True),
        ({"SWARM_JWT_SECRET": SECRET}, {"SWARM_JWT_SECRET": SECRET, **_BOOTSTRAP}, True),
        ({"SWARM_JWT_SECRET": SECRET}, {"SWARM_JWT_SECRET": SECRET[::-1]}, False),
        ({"SWARM_JWT_SECRET": SECRET}, {"SWARM_JWT_SECRET": SECRET, "SWARM_JWT_ISSUER": "another"}, False),
        ({"SWARM_JWT_SECRET": SECRET}, _BOOTSTRAP, False),
        ({"SWARM_JWT_SECRET": SECRET}, {}, False),
    ],
)
async def test_they_are_good_as_long_as_what_they_came_from_is_configured(
    sqlite_url: str, before: dict[str, str], after: dict[str, str], are_good: bool
) -> None:
    async with serving({"DATABASE_URL": sqlite_url, **before}) as client:
        cookie, ticket = await _given(client, _token() if before else {})
    async with serving({"DATABASE_URL": sqlite_url, **after}) as client:
        answer = await client.get("/api/session", headers=cookie)
        assert answer.status == (200 if are_good else 401)
        async with client.get("/api/events", params={"ticket": ticket}) as answer:
            assert answer.status == (200 if are_good else 401)


async def test_a_bootstrap_key_may_look_like_any_other_key(sqlite_url: str) -> None:
    """One that another server has made, say."""
    shown = f"swarm_key_{'0' * 16}_{'1' * 64}"
    async with serving({"DATABASE_URL": sqlite_url, "SWARM_BOOTSTRAP_KEY": shown}) as client:
        answer = await client.get("/api/session", headers={"Authorization": f"Bearer {shown}"})
        assert (answer.status, (await answer.json())["principal"]) == (200, "bootstrap")
        await problem(await client.get("/api/session", headers={"Cookie": f"__Host-swarm={shown}"}), 401)


@pytest.mark.parametrize("text", ["é" * 40, "b" * 40 + "\x7f" + "b"])
def test_a_bootstrap_key_that_nobody_could_show_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="SWARM_BOOTSTRAP_KEY"):
        settings.load({"SWARM_BOOTSTRAP_KEY": text})
