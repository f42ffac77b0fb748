"""Every route with every kind of credential. The routes are the router's own: a new one is here by itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from aiohttp import ClientResponse
from sqlalchemy import text

from handlers.media_type import JSON
from handlers.resources import CREDENTIALS, DATABASE
from handlers.route import Route
from server.routes import ROUTES
from storage.credentials import SCOPES, Scope
from storage.records import now
from tests.api import Client, problem
from tests.sse_reader import SseReader

OURS, THEIRS = "default", "another"
BOOTSTRAP = "b" * 40

_each_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
_each_guarded = pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.needs != "public"], ids=lambda route: route.name
)
# Who is asking is found out before the database is; what is whose is asked of both.
_on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
# Of routes that have no example, and where an example does not go on where the message is.
_BODIES: dict[str, Any] = {
    "PATCH /api/conversations/{conversation_id}": {"title": "another"},
    "PATCH /api/messages/{message_id}": {"content": "another"},
    "POST /api/messages/{message_id}/deltas": {"offset": 0, "text": "more"},
}
# What is public has no secrets. A new route that is meant to be public must be added here as well.
_PUBLIC = {
    *("GET /health", "GET /health/live", "GET /health/ready", "GET /metrics"),
    *("GET /", "GET /openapi.json", "GET /docs", "GET /problems/{kind}"),
}


@pytest.fixture
def environment() -> dict[str, str]:
    return {"SWARM_BOOTSTRAP_KEY": BOOTSTRAP}


class Things(NamedTuple):
    """What there is in our tenant, and where."""

    ids: dict[str, str]
    streaming: str

    def path(self, route: Route, ids: dict[str, str] | None = None) -> str:
        if ids is None:
            streams = route.path.endswith(("/deltas", "/finish"))
            ids = self.ids | {"message_id": self.streaming} if streams else self.ids
        return route.path.format(**ids)


async def _key(client: Client, tenant: str, *scopes: Scope, days: float | None = None) -> str:
    expires = None if days is None else now() + timedelta(days=days)
    _, key = await client.app[CREDENTIALS].create_key(tenant, "test", frozenset(scopes), expires, "test")
    return key


async def _revoked(client: Client) -> str:
    key = await _key(client, OURS, *SCOPES)
    assert (await _ask(client, "GET", "/api/conversations", key)).status == 200  # it is known
    answer = await _ask(client, "DELETE", f"/api/keys/{key.split('_')[2]}", BOOTSTRAP)
    assert answer.status == 204
    return key


async def _ask(client: Client, method: str, path: str, key: str | None, body: Any = None) -> ClientResponse:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    if body is not None:
        headers["Content-Type"] = JSON
    return await client.request(method, path, headers=headers, json=body)


def _body(route: Route) -> Any:
    if route.body is None:
        return None
    body = _BODIES.get(route.name, route.example)
    assert body is not None, f"{route.name} has a body and no example of it"
    return body


async def _send(client: Client, route: Route, path: str, key: str | None) -> ClientResponse:
    return await _ask(client, route.method, path, key, _body(route))


@pytest.fixture
async def things(client: Client) -> Things:
    """One of each thing that a path can name, and a message that streams, which can be added to and finished."""
    conversation = await (await _ask(client, "POST", "/api/conversations", BOOTSTRAP, {"title": "ours"})).json()
    path = f"/api/conversations/{conversation['id']}/messages"
    message = await (await _ask(client, "POST", path, BOOTSTRAP, {"role": "user", "content": "ours alone"})).json()
    streaming = await (await _ask(client, "POST", path, BOOTSTRAP, {"role": "user", "status": "streaming"})).json()
    agent = {"name": "Ours", "role": "editor"}
    assert (await _ask(client, "PUT", "/api/agents/ours", BOOTSTRAP, agent)).status == 201
    made = await (await _ask(client, "POST", "/api/keys", BOOTSTRAP, {"name": "ours", "scopes": ["read"]})).json()
    return Things(
        {
            "conversation_id": conversation["id"],
            "message_id": message["id"],
            "agent_id": "ours",
            "key_id": made["id"],
            "kind": "invalid",
        },
        streaming["id"],
    )


def test_what_is_public_is_meant_to_be() -> None:
    assert {route.name for route in ROUTES if route.needs == "public"} == _PUBLIC


@_on_sqlite
@_each_guarded
async def test_without_a_good_one_it_is_refused(client: Client, things: Things, route: Route) -> None:
    path = things.path(route)
    answer = await _send(client, route, path, None)
    await problem(answer, 401)
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="swarm"'
    expired = await _key(client, OURS, *SCOPES, days=-1)
    forged = await _key(client, OURS, *SCOPES)
    forged = forged[:-1] + ("0" if forged[-1] != "0" else "1")
    for key in (expired, await _revoked(client), forged, BOOTSTRAP[:-1], "x.y.z"):
        answer = await _send(client, route, path, key)
        await problem(answer, 401)
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="swarm", error="invalid_token"'
    others = [scope for scope in SCOPES if scope != route.needs]
    answer = await _send(client, route, path, await _key(client, OURS, *others))
    if route.needs == "anyone":
        assert answer.status < 400
    else:
        await problem(answer, 403)
        assert f'scope="{route.needs}"' in answer.headers["WWW-Authenticate"]


@_on_sqlite
@_each_route
async def test_with_the_right_one_it_is_answered(client: Client, things: Things, route: Route) -> None:
    key = None
    if route.needs != "public":
        key = await _key(client, OURS, *(SCOPES if route.needs == "anyone" else (route.needs,)))
        if route.path == "/api/keys" and route.method == "POST":
            key = BOOTSTRAP  # nobody gives away more than they have
    answer = await _send(client, route, things.path(route), key)
    assert answer.status < 400, await answer.text()


@_each_guarded
async def test_in_another_tenant_it_is_as_if_it_were_not_there(client: Client, things: Things, route: Route) -> None:
    """The same answer, after the same questions to the database; and nothing of ours is read or touched."""
    key = await _key(client, THEIRS, *SCOPES)
    await _ask(client, "GET", "/api/conversations", key)  # the key is known from now on
    before = await _ours(client)
    with _operations(client) as foreign:
        answer = await _send(client, route, things.path(route), key)
    if "{" in route.path and route.method != "PUT":
        said = await problem(answer, 404)
        absent = dict.fromkeys(things.ids, str(uuid4())) | {"agent_id": "nobody", "key_id": "0" * 16}
        with _operations(client) as missing:
            same = await problem(await _send(client, route, things.path(route, absent), key), 404)
        assert {**said, "instance": "", "request_id": ""} == {**same, "instance": "", "request_id": ""}
        assert foreign == missing
    elif not route.events:
        for secret in (*things.ids.values(), "ours alone"):
            if secret != "ours":
                assert secret not in await answer.text()
    assert await _ours(client) == before


@contextmanager
def _operations(client: Client) -> Iterator[list[str]]:
    """What is asked of the database meanwhile."""
    names: list[str] = []
    observer = client.app[DATABASE].observer
    observe = observer.observe

    def watched(name: str, seconds: float, failure: str | None) -> None:
        if not name.startswith(("housekeeping", "log.moved", "conversations.touched")):
            names.append(name)
        observe(name, seconds, failure)

    patch = pytest.MonkeyPatch()
    patch.setattr(observer, "observe", watched)
    try:
        yield names
    finally:
        patch.undo()


async def _ours(client: Client) -> list[str]:
    tables = ("conversations", "messages", "streaming_messages", "events", "runs", "agents", "credentials", "audit")
    async with client.app[DATABASE].transaction("test.look") as connection:
        found = [
            (await connection.execute(text(f"SELECT * FROM {table} WHERE tenant = :ours"), {"ours": OURS})).all()
            for table in tables
        ]
    return [str(tuple(row)) for row in itertools.chain.from_iterable(found)]


# Streams, vectors, cursors.


async def test_a_stream_of_several_says_of_foreign_ones_what_it_says_of_absent_ones(
    client: Client, things: Things
) -> None:
    ours, absent = things.ids["conversation_id"], str(uuid4())
    key = await _key(client, THEIRS, "read", "write")
    own = (await (await _ask(client, "POST", "/api/conversations", key, {})).json())["id"]
    assert client.port is not None
    headers = {"Authorization": f"Bearer {key}"}
    for after in ("", ":0", ":1"):
        said: dict[str, list[str]] = {}
        for asked in (ours, absent):
            path = f"/api/events?conversations={asked}{after},{own}"
            async with SseReader(client.host, client.port, path, headers) as reader:
                events = [await reader.event() for _ in range(2)]
            said[asked] = [f"{event.event} {event.data} {event.id}".replace(asked, "it") for event in events]
        assert said[ours] == said[absent]
        assert said[ours][0].startswith("conversation.gone")


async def test_the_vector_of_a_foreign_conversation_is_worth_nothing(client: Client, things: Things) -> None:
    ours = things.ids["conversation_id"]
    key = await _key(client, THEIRS, "read")
    assert client.port is not None
    async with SseReader(
        client.host, client.port, f"/api/events?conversations={ours}", {"Authorization": f"Bearer {BOOTSTRAP}"}
    ) as reader:
        ready = await reader.event()
    headers = {"Authorization": f"Bearer {key}", "Last-Event-ID": str(ready.id)}
    async with SseReader(client.host, client.port, f"/api/events?conversations={ours}", headers) as reader:
        assert (await reader.event()).event == "conversation.gone"


async def test_a_foreign_cursor_opens_nothing(client: Client, things: Things) -> None:
    for path in ("/api/conversations", "/api/messages", "/api/agents", "/api/keys"):
        for _ in range(3):
            await _ask(client, "POST", "/api/conversations", BOOTSTRAP, {"title": "ours alone"})
            await _key(client, OURS, "read")
        cursor = (await (await _ask(client, "GET", f"{path}?limit=1", BOOTSTRAP)).json())["next"]
        assert cursor is not None
        key = await _key(client, THEIRS, "read", "admin")
        answer = await _ask(client, "GET", f"{path}?limit=50&cursor={cursor}", key)
        assert answer.status == 200
        said = await answer.text()
        assert "ours" not in said
        assert all(identifier not in said for name, identifier in things.ids.items() if name != "agent_id")


async def test_the_feed_of_a_tenant_is_its_own(client: Client, things: Things) -> None:
    key = await _key(client, THEIRS, "read", "write")
    assert client.port is not None
    async with SseReader(client.host, client.port, "/api/events", {"Authorization": f"Bearer {key}"}) as reader:
        assert (await reader.event()).event == "ready"
        await _ask(client, "POST", "/api/conversations", BOOTSTRAP, {"title": "ours alone"})
        own = await (await _ask(client, "POST", "/api/conversations", key, {"title": "theirs"})).json()
        event = await reader.event()
    assert own["id"] in event.data
    assert "ours alone" not in event.data


async def test_an_idempotency_key_of_another_tenant_is_another_key(client: Client) -> None:
    theirs = await _key(client, THEIRS, "write")
    made = []
    for key in (BOOTSTRAP, theirs, theirs):
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "the-same"}
        made.append((await (await client.post("/api/conversations", json={}, headers=headers)).json())["id"])
    assert made[0] != made[1] == made[2]
