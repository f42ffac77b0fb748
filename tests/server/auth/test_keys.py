"""API keys, sessions and tickets, as their users have them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from handlers.resources import CREDENTIALS
from storage.credentials import SCOPES
from storage.records import now
from tests.api import Client, fault, new_conversation, problem
from tests.conftest import serving
from tests.server.auth.issuer import SECRET, token

# What depends on the database is in tests/storage/test_credentials.py.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

BOOTSTRAP = "b" * 40
_ADMIN = {"Authorization": f"Bearer {BOOTSTRAP}"}


@pytest.fixture
def environment() -> dict[str, str]:
    return {"SWARM_BOOTSTRAP_KEY": BOOTSTRAP, "SWARM_RATE_LIMIT_ADDRESS": "0"}


async def _key(client: Client, *scopes: str, **fields: Any) -> dict[str, str]:
    made = await client.post("/api/keys", json={"name": "test", "scopes": scopes, **fields}, headers=_ADMIN)
    assert made.status == 201, await made.text()
    return {"Authorization": f"Bearer {(await made.json())['key']}"}


async def _session(client: Client, headers: dict[str, str]) -> dict[str, str]:
    began = await client.post("/api/session", headers=headers)
    assert began.status == 201
    return {"Cookie": began.headers["Set-Cookie"].partition(";")[0], "Sec-Fetch-Site": "same-origin"}


# Keys.


async def test_a_key_is_shown_when_it_is_made_and_never_again(client: Client) -> None:
    answer = await client.post("/api/keys", json={"name": "the back end", "scopes": ["write", "read"]}, headers=_ADMIN)
    made = await answer.json()
    assert (answer.status, answer.headers["Location"]) == (201, f"/api/keys/{made['id']}")
    assert answer.headers["Cache-Control"] == "no-store"
    shown = made.pop("key")
    assert shown.startswith(f"swarm_key_{made['id']}_")
    assert made["scopes"] == ["read", "write"]
    assert await (await client.get(f"/api/keys/{made['id']}", headers=_ADMIN)).json() == made
    listed = await client.get("/api/keys", headers=_ADMIN)
    assert await listed.json() == {"items": [made], "next": None}
    assert shown not in await listed.text()


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"scopes": ["read"]}, "pointer "),
        ({"name": "", "scopes": ["read"]}, "pointer /name"),
        ({"name": "x", "scopes": []}, "pointer /scopes"),
        ({"name": "x", "scopes": ["everything"]}, "pointer /scopes/0"),
        ({"name": "x", "scopes": ["read"], "tenant": "another"}, "pointer "),
        ({"name": "x", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}, "pointer /expires_at"),
        ({"name": "x", "scopes": ["read"], "expires_at": "2999-01-01T00:00:00"}, "pointer /expires_at"),
    ],
)
async def test_what_is_wrong_with_a_key_is_named(client: Client, body: Any, where: str) -> None:
    said = await fault(await client.post("/api/keys", json=body, headers=_ADMIN))
    assert said.startswith(where)


async def test_nobody_gives_away_what_they_do_not_have(client: Client) -> None:
    admin = await _key(client, "admin", "read")
    made = await client.post("/api/keys", json={"name": "x", "scopes": ["read", "write"]}, headers=admin)
    assert await fault(made) == "pointer /scopes/1"
    assert (await client.post("/api/keys", json={"name": "x", "scopes": ["read"]}, headers=admin)).status == 201


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "/api/keys", {"name": "x", "scopes": ["read"]}), ("POST", "/api/session", None),
     ("POST", "/api/tickets", {"feed": True})],
)  # fmt: skip
async def test_what_holds_a_secret_takes_no_idempotency_key(client: Client, method: str, path: str, body: Any) -> None:
    answer = await client.request(method, path, json=body, headers=_ADMIN | {"Idempotency-Key": "k"})
    assert await fault(answer) == "header Idempotency-Key"


async def test_a_known_key_is_not_good_beyond_its_expiry(client: Client) -> None:
    """It would be looked at again much later."""
    _, shown = await client.app[CREDENTIALS].create_key(
        "default", "x", frozenset(SCOPES), now() + timedelta(seconds=1), "test"
    )
    headers = {"Authorization": f"Bearer {shown}"}
    assert (await client.get("/api/conversations", headers=headers)).status == 200
    async with asyncio.timeout(10):
        while (await client.get("/api/conversations", headers=headers)).status != 401:
            await asyncio.sleep(0.05)


# How a credential is shown.


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": BOOTSTRAP},
        {"Authorization": f"Basic {BOOTSTRAP}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {BOOTSTRAP} {BOOTSTRAP}"},
        {"Authorization": f"Bearer {BOOTSTRAP}\u00e9"},
        {"Authorization": f"Bearer {'x' * 7_000}"},
        {"Cookie": f"__Host-swarm={BOOTSTRAP}", "Sec-Fetch-Site": "same-origin"},
        {"Cookie": f"swarm={BOOTSTRAP}"},
        {"X-API-Key": BOOTSTRAP},
    ],
)
async def test_what_is_not_shown_as_it_should_is_refused(client: Client, headers: dict[str, str]) -> None:
    await problem(await client.get("/api/conversations", headers=headers), 401)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_name_of_the_scheme_is_written_in_any_case(client: Client, scheme: str) -> None:
    for _ in range(2):
        answer = await client.get("/api/conversations", headers={"Authorization": f"{scheme} {BOOTSTRAP}"})
        assert answer.status == 200


async def test_each_kind_is_shown_in_its_place_alone(client: Client) -> None:
    """Also when it was known in its own place a moment ago."""
    conversation = (await (await client.post("/api/conversations", json={}, headers=_ADMIN)).json())["id"]
    headers = await _key(client, "read", "write")
    key = headers["Authorization"].partition(" ")[2]
    cookie = await _session(client, headers)
    session = cookie["Cookie"].partition("=")[2]
    made = await client.post("/api/tickets", json={"conversations": [conversation]}, headers=headers)
    ticket = (await made.json())["ticket"]
    path = f"/api/conversations/{conversation}/events"
    assert (await client.get("/api/conversations", headers=headers)).status == 200
    assert (await client.get("/api/conversations", headers=cookie)).status == 200
    async with client.get(f"{path}?ticket={ticket}") as stream:
        assert stream.status == 200
    for wrong in (session, ticket):
        answer = await client.get("/api/conversations", headers={"Authorization": f"Bearer {wrong}"})
        await problem(answer, 401)
    for wrong in (key, ticket, BOOTSTRAP):
        shown = {"Cookie": f"__Host-swarm={wrong}", "Sec-Fetch-Site": "same-origin"}
        await problem(await client.get("/api/conversations", headers=shown), 401)
    for wrong in (key, session, BOOTSTRAP):
        await problem(await client.get(f"{path}?ticket={wrong}"), 401)


async def test_a_header_wins_over_a_ticket_and_a_ticket_over_a_cookie(client: Client) -> None:
    conversation = (await (await client.post("/api/conversations", json={}, headers=_ADMIN)).json())["id"]
    path = f"/api/conversations/{conversation}/events"
    cookie = await _session(client, _ADMIN)
    await problem(await client.get(f"{path}?ticket=bad", headers=cookie), 401)
    await problem(await client.get("/api/conversations", headers=cookie | {"Authorization": "Bearer bad"}), 401)


# Sessions.


async def test_a_session_says_who_is_asking(client: Client) -> None:
    headers = await _key(client, "read")
    began = await client.post("/api/session", headers=headers)
    said = await began.json()
    assert (said["tenant"], said["scopes"]) == ("default", ["read"])
    cookie = began.headers["Set-Cookie"]
    assert cookie.startswith("__Host-swarm=swarm_session_")
    assert cookie.endswith("; Path=/; Secure; HttpOnly; SameSite=Strict")
    asked = await client.get("/api/session", headers={"Cookie": cookie.partition(";")[0]})
    assert await asked.json() == said
    assert (await (await client.get("/api/session", headers=headers)).json())["expires_at"] is None


async def test_a_session_may_do_what_its_key_may(client: Client) -> None:
    cookie = await _session(client, await _key(client, "read"))
    assert (await client.get("/api/conversations", headers=cookie)).status == 200
    await problem(await client.post("/api/conversations", json={}, headers=cookie), 403)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://{host}"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://{host}"}, 403),
        ({"Origin": "http://{host}.evil.example"}, 403),
        ({"Origin": "http://{host}"}, 201),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
    ],
)
async def test_a_write_with_a_cookie_must_come_from_a_page_of_ours(
    client: Client, said: dict[str, str], status: int
) -> None:
    cookie = {"Cookie": (await _session(client, _ADMIN))["Cookie"]}
    named = {name: value.format(host=f"{client.host}:{client.port}") for name, value in said.items()}
    answer = await client.post("/api/conversations", json={}, headers=cookie | named)
    assert answer.status == status
    for route in ("/api/session", "/api/tickets"):
        answer = await client.post(route, json={"feed": True}, headers=cookie | named)
        assert (answer.status == 403) == (status == 403)


async def test_with_a_header_a_write_may_come_from_anywhere(client: Client) -> None:
    """No browser sends it by itself."""
    answer = await client.post("/api/conversations", json={}, headers=_ADMIN | {"Sec-Fetch-Site": "cross-site"})
    assert answer.status == 201


# Tickets.


async def test_a_ticket_opens_what_it_names_and_nothing_else(client: Client) -> None:
    one, two = [(await (await client.post("/api/conversations", json={}, headers=_ADMIN)).json())["id"] for _ in "ab"]
    made = await client.post("/api/tickets", json={"conversations": [one]}, headers=_ADMIN)
    ticket = (await made.json())["ticket"]
    async with client.get(f"/api/conversations/{one}/events?ticket={ticket}") as stream:
        assert stream.status == 200
    await problem(await client.get(f"/api/conversations/{two}/events?ticket={ticket}"), 404)
    await problem(await client.get(f"/api/events?ticket={ticket}"), 403)
    await problem(await client.get(f"/api/events?conversations={one}&feed=true&ticket={ticket}"), 403)
    async with client.get(f"/api/events?conversations={one},{two}&ticket={ticket}") as stream:
        said = await stream.content.readuntil(b"conversation.gone\n")
        assert two in (said + await stream.content.readuntil(b"\n\n")).decode()
    for path in ("/api/conversations", f"/api/conversations/{one}", f"/api/conversations/{one}/messages"):
        assert (await client.get(f"{path}?ticket={ticket}")).status in {403, 422}
    await problem(await client.post(f"/api/tickets?ticket={ticket}", json={"feed": True}), 403)
    await problem(await client.post(f"/api/session?ticket={ticket}"), 403)


async def test_a_ticket_names_something(client: Client) -> None:
    assert await fault(await client.post("/api/tickets", json={}, headers=_ADMIN)) == "pointer "


# Tokens.


@pytest.mark.parametrize("environment", [{"SWARM_JWT_SECRET": SECRET}])
async def test_a_token_is_a_credential_with_its_tenant_and_scopes(client: Client) -> None:
    good = token("HS256", exp=int(now().timestamp()) + 600)
    headers = {"Authorization": f"Bearer {good}"}
    said = await (await client.get("/api/session", headers=headers)).json()
    assert said == {"tenant": "acme", "principal": "jwt:ann", "scopes": ["read", "write"], "expires_at": None}
    await problem(await client.get("/api/keys", headers=headers), 403)
    for bad in (good[:-4], token("HS256", exp=int(now().timestamp()) - 600), token("HS256", exp=...)):
        answer = await client.get("/api/session", headers={"Authorization": f"Bearer {bad}"})
        assert (await problem(answer, 401))["detail"]


# Without credentials.


async def test_an_open_server_takes_credentials_all_the_same(database_url: str) -> None:
    async with serving({"DATABASE_URL": database_url}) as client:
        made = await client.post("/api/keys", json={"name": "x", "scopes": ["read"]})
        key = (await made.json())["key"]
        await new_conversation(client)
        headers = {"Authorization": f"Bearer {key}"}
        assert (await client.get("/api/conversations", headers=headers)).status == 200
        await problem(await client.post("/api/conversations", json={}, headers=headers), 403)
        for bad in (key[:-1], "x"):
            await problem(await client.get("/api/conversations", headers={"Authorization": f"Bearer {bad}"}), 401)
        assert (await client.get("/api/conversations")).status == 200


async def test_another_bootstrap_key_ends_what_came_from_the_first(database_url: str) -> None:
    async with serving({"DATABASE_URL": database_url, "SWARM_BOOTSTRAP_KEY": BOOTSTRAP}) as client:
        cookie = await _session(client, _ADMIN)
        key = await _key(client, "read")
        assert (await client.get("/api/conversations", headers=cookie)).status == 200
    async with serving({"DATABASE_URL": database_url, "SWARM_BOOTSTRAP_KEY": "c" * 40}) as client:
        await problem(await client.get("/api/conversations", headers=_ADMIN), 401)
        await problem(await client.get("/api/conversations", headers=cookie), 401)
        assert (await client.get("/api/conversations", headers=key)).status == 200  # it is a key of its own


async def test_what_came_from_what_is_not_configured_any_more_is_not_good(database_url: str) -> None:
    """Of nobody, while the server was open; of a token, while tokens were believed."""
    shown = {"Authorization": f"Bearer {token('HS256', tenant='default', exp=int(now().timestamp()) + 600)}"}
    async with serving({"DATABASE_URL": database_url}) as client:
        of_nobody = await _session(client, {})
        made = await client.post("/api/tickets", json={"feed": True})
        ticket = (await made.json())["ticket"]
        assert (await client.get("/api/session", headers=of_nobody)).status == 200
    async with serving({"DATABASE_URL": database_url, "SWARM_JWT_SECRET": SECRET}) as client:
        of_token = await _session(client, shown)
        assert (await client.get("/api/session", headers=of_token)).status == 200
        await problem(await client.get("/api/session", headers=of_nobody), 401)
        await problem(await client.get(f"/api/events?ticket={ticket}"), 401)
    async with serving({"DATABASE_URL": database_url, "SWARM_BOOTSTRAP_KEY": BOOTSTRAP}) as client:
        await problem(await client.get("/api/session", headers=of_token), 401)
