"""A credential that ends: requests are refused, and streams that it opened end, in every process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from handlers.resources import CREDENTIALS, DATABASE, HUB
from storage.credentials import SCOPES
from storage.records import now
from tests.api import Client, problem
from tests.conftest import serving
from tests.server.auth.issuer import SECRET, token
from tests.sse_reader import SseReader, StreamEnded
from tests.valkey_server import ValkeyServer

BOOTSTRAP = "b" * 40
_HEADERS = {"Authorization": f"Bearer {BOOTSTRAP}"}
_WAIT = 20.0


@pytest.fixture
def environment() -> dict[str, str]:
    """Looks again often, so that a test need not wait long."""
    return {"SWARM_BOOTSTRAP_KEY": BOOTSTRAP, "SWARM_RECHECK": "0.2"}


async def _made(client: Client, path: str, body: Any, headers: dict[str, str] = _HEADERS) -> dict[str, Any]:
    answer = await client.post(path, json=body, headers=headers)
    assert answer.status == 201, await answer.text()
    made: dict[str, Any] = await answer.json()
    return made


async def _post(client: Client, conversation: str) -> None:
    await _made(client, f"/api/conversations/{conversation}/messages", {"role": "user", "content": "here"})


@asynccontextmanager
async def _reading(client: Client, path: str, headers: dict[str, str]) -> AsyncIterator[SseReader]:
    assert client.port is not None
    async with SseReader(client.host, client.port, path, headers) as reader:
        assert (await reader.event()).event == "ready"
        yield reader


async def _ends(reader: SseReader) -> None:
    """Its reader is told why, and it ends properly."""
    *_, event = await reader.until("drain")
    assert event.json == {"reason": "unauthorized"}
    with pytest.raises(StreamEnded) as ended:
        while True:
            await reader.frame()
    assert ended.value.clean


async def _key(client: Client, **fields: Any) -> tuple[str, dict[str, str]]:
    made = await _made(client, "/api/keys", {"name": "test", "scopes": list(SCOPES), **fields})
    return made["id"], {"Authorization": f"Bearer {made['key']}"}


async def _streams(client: Client, stack: AsyncExitStack, headers: dict[str, str]) -> list[SseReader]:
    """One of each kind: of a conversation, of several, of the feed."""
    conversation = (await _made(client, "/api/conversations", {}))["id"]
    paths = (f"/api/conversations/{conversation}/events", f"/api/events?conversations={conversation}", "/api/events")
    return [await stack.enter_async_context(_reading(client, path, headers)) for path in paths]


async def test_streams_end_with_their_key_and_no_others(client: Client) -> None:
    key_id, headers = await _key(client)
    async with AsyncExitStack() as stack:
        theirs = await _streams(client, stack, headers)
        others = await _streams(client, stack, _HEADERS)
        assert (await client.delete(f"/api/keys/{key_id}", headers=_HEADERS)).status == 204
        for reader in theirs:
            await _ends(reader)
        await problem(await client.get("/api/conversations", headers=headers), 401)
        made = await _made(client, "/api/conversations", {"title": "still there"})
        while made["id"] not in (await others[2].event()).data:
            pass  # of a conversation that was made before, told a moment later


async def test_what_came_from_a_key_ends_with_it(client: Client) -> None:
    key_id, headers = await _key(client)
    conversation = (await _made(client, "/api/conversations", {}))["id"]
    began = await client.post("/api/session", headers=headers)
    cookie = {"Cookie": began.headers["Set-Cookie"].partition(";")[0], "Sec-Fetch-Site": "same-origin"}
    path = f"/api/conversations/{conversation}/events"
    tickets = [
        (await _made(client, "/api/tickets", {"conversations": [conversation]}, giver))["ticket"]
        for giver in (headers, cookie)
    ]
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(_reading(client, path, cookie))]
        readers += [
            await stack.enter_async_context(_reading(client, f"{path}?ticket={ticket}", {})) for ticket in tickets
        ]
        assert (await client.delete(f"/api/keys/{key_id}", headers=_HEADERS)).status == 204
        for reader in readers:
            await _ends(reader)
    for target, shown in ((path, cookie), (f"{path}?ticket={tickets[0]}", {}), (f"{path}?ticket={tickets[1]}", {})):
        await problem(await client.get(target, headers=shown), 401)
    await problem(await client.post("/api/tickets", json={"feed": True}, headers=cookie), 401)


async def test_a_session_that_ends_takes_its_streams_and_tickets_along_and_nothing_else(client: Client) -> None:
    _, headers = await _key(client)
    conversation = (await _made(client, "/api/conversations", {}))["id"]
    path = f"/api/conversations/{conversation}/events"
    began = await client.post("/api/session", headers=headers)
    cookie = {"Cookie": began.headers["Set-Cookie"].partition(";")[0], "Sec-Fetch-Site": "same-origin"}
    ticket = (await _made(client, "/api/tickets", {"conversations": [conversation]}, cookie))["ticket"]
    async with AsyncExitStack() as stack:
        ends = [await stack.enter_async_context(_reading(client, path, cookie))]
        ends.append(await stack.enter_async_context(_reading(client, f"{path}?ticket={ticket}", {})))
        stays = await stack.enter_async_context(_reading(client, path, headers))
        ended = await client.delete("/api/session", headers=cookie)
        assert (ended.status, ended.headers["Set-Cookie"].partition(" Path")[0]) == (204, "__Host-swarm=; Max-Age=0;")
        for reader in ends:
            await _ends(reader)
        await _post(client, conversation)
        assert (await stays.event()).event == "message.created"
    await problem(await client.get("/api/conversations", headers=cookie), 401)


async def test_a_stream_ends_when_its_key_expires(client: Client) -> None:
    _, headers = await _key(client, expires_at=(now() + timedelta(seconds=1)).isoformat())
    async with AsyncExitStack() as stack:
        for reader in await _streams(client, stack, headers):
            await _ends(reader)
    await problem(await client.get("/api/conversations", headers=headers), 401)


@pytest.mark.parametrize(
    "environment",
    [{"SWARM_JWT_SECRET": SECRET, "SWARM_RECHECK": "0.2", "SWARM_BOOTSTRAP_KEY": BOOTSTRAP, "SWARM_JWT_LEEWAY": "0"}],
)
async def test_a_stream_ends_when_its_token_expires(client: Client) -> None:
    shown = token("HS256", tenant="default", exp=int(now().timestamp()) + 2)
    async with AsyncExitStack() as stack:
        for reader in await _streams(client, stack, {"Authorization": f"Bearer {shown}"}):
            await _ends(reader)


async def test_a_ticket_that_expires_ends_no_stream(database_url: str) -> None:
    environment = {"SWARM_BOOTSTRAP_KEY": BOOTSTRAP, "SWARM_RECHECK": "0.2", "SWARM_TICKET_LIFE": "1"}
    async with serving({"DATABASE_URL": database_url, **environment}) as client:
        conversation = (await _made(client, "/api/conversations", {}))["id"]
        ticket = (await _made(client, "/api/tickets", {"conversations": [conversation]}))["ticket"]
        path = f"/api/conversations/{conversation}/events"
        async with _reading(client, f"{path}?ticket={ticket}", {}) as reader:
            async with asyncio.timeout(_WAIT):
                while (await client.get(f"{path}?ticket={ticket}")).status != 401:
                    await asyncio.sleep(0.1)
            await _post(client, conversation)
            assert (await reader.event()).event == "message.created"


async def test_another_process_ends_streams_at_once_where_redis_is(database_url: str, valkey: ValkeyServer) -> None:
    """Both look again after 45 seconds only: longer than this test waits."""
    environment = {"DATABASE_URL": database_url, "SWARM_BOOTSTRAP_KEY": BOOTSTRAP, "SWARM_RECHECK": "45"}
    environment |= {"REDIS_URL": valkey.url}
    async with (
        serving(environment) as one,
        serving(environment) as two,
    ):
        key_id, headers = await _key(one)
        async with AsyncExitStack() as stack:
            readers = await _streams(two, stack, headers)
            async with asyncio.timeout(_WAIT):
                while not two.app[HUB].bus.live:
                    await asyncio.sleep(0.02)
            assert (await two.get("/api/conversations", headers=headers)).status == 200  # it is known there
            assert (await one.delete(f"/api/keys/{key_id}", headers=_HEADERS)).status == 204
            for reader in readers:
                await _ends(reader)
        await problem(await two.get("/api/conversations", headers=headers), 401)


async def test_another_process_ends_streams_when_it_looks_again_without_redis(database_url: str) -> None:
    environment = {"DATABASE_URL": database_url, "SWARM_BOOTSTRAP_KEY": BOOTSTRAP, "SWARM_RECHECK": "0.2"}
    async with serving(environment) as one, serving(environment) as two:
        key_id, headers = await _key(one)
        async with AsyncExitStack() as stack:
            readers = await _streams(two, stack, headers)
            assert (await one.delete(f"/api/keys/{key_id}", headers=_HEADERS)).status == 204
            for reader in readers:
                await _ends(reader)
        await problem(await two.get("/api/conversations", headers=headers), 401)


async def test_a_stream_that_is_on_its_way_when_its_key_ends_ends_at_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was let in a moment before is attached a moment after."""
    key_id, headers = await _key(client)
    hub = client.app[HUB]
    conversation = (await _made(client, "/api/conversations", {}))["id"]
    watch, arrived, go_on = hub.watch, asyncio.Event(), asyncio.Event()

    async def slow_watch(*arguments: Any) -> Any:
        arrived.set()
        await go_on.wait()
        return await watch(*arguments)

    monkeypatch.setattr(hub, "watch", slow_watch)
    assert client.port is not None
    reader = SseReader(client.host, client.port, f"/api/conversations/{conversation}/events", headers)
    opening = asyncio.create_task(reader.open())
    async with asyncio.timeout(_WAIT):
        await arrived.wait()
        assert (await client.delete(f"/api/keys/{key_id}", headers=_HEADERS)).status == 204
        go_on.set()
        await opening
    await _ends(reader)
    reader.close()


async def test_a_ticket_is_not_given_for_a_session_that_ends_meanwhile(client: Client) -> None:
    """The session is good when it is looked at, and gone when the ticket's row would be written."""
    _, headers = await _key(client)
    began = await client.post("/api/session", headers=headers)
    cookie = {"Cookie": began.headers["Set-Cookie"].partition(";")[0], "Sec-Fetch-Site": "same-origin"}
    assert (await client.get("/api/session", headers=cookie)).status == 200
    session_id = cookie["Cookie"].split("_")[4]
    # In another process, of which this one has not heard yet.
    ended = await client.app[CREDENTIALS].end_session("default", session_id, "test")
    assert ended == [session_id]
    answer = await client.post("/api/tickets", json={"feed": True}, headers=cookie)
    await problem(answer, 401)


async def test_while_the_database_is_away_streams_stay_and_new_ones_are_told_to_come_back(client: Client) -> None:
    _, headers = await _key(client)
    async with AsyncExitStack() as stack:
        [reader, *_] = await _streams(client, stack, headers)
        database = client.app[DATABASE]
        database._ready.clear()
        await asyncio.sleep(0.5)  # more than one look at what is open
        assert client.port is not None
        async with SseReader(client.host, client.port, "/api/events", headers) as another:
            event = await another.event()
            assert (another.status, event.event, event.json) == (200, "drain", {"reason": "unavailable"})
        assert (await client.get("/api/conversations", headers=headers)).status == 503
        database._ready.set()
        conversation = (await _made(client, "/api/conversations", {}))["id"]
        assert conversation
        assert client.app[HUB].streams == 3
        assert reader.status == 200
