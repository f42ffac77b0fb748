"""Behind pgbouncer in transaction mode: each transaction may run on another server connection than the last."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from msgspec import UNSET, Raw

from events.conversation_log import Draft
from storage import migrate
from storage.agents import AgentRows
from storage.config import StorageConfig
from storage.errors import StorageError
from storage.housekeeping import Housekeeping
from storage.log import Log
from storage.statistics import Statistics
from storage.url import parse_database_url
from storage.windows import Anchor
from tests.postgres_server import PostgresServer
from tests.storage.pgbouncer import HOW_TO_GET_IT, Pgbouncer, find_pgbouncer
from tests.storage.store import SHIPPED, TENANT, Store, bounded, key, opened


@pytest.fixture(params=["pgbouncer", "pgbouncer's settings without it"])
def bouncer_url(request: pytest.FixtureRequest, postgres: PostgresServer, postgresql_url: str) -> Iterator[str]:
    """A migrated database, through pgbouncer where that is installed, and with its settings right at PostgreSQL."""
    if request.param != "pgbouncer":
        yield postgresql_url
        return
    if find_pgbouncer() is None:
        pytest.skip(HOW_TO_GET_IT)
    with Pgbouncer(postgres.port, server_connections=3) as pgbouncer:
        yield postgresql_url.replace(f":{postgres.port}/", f":{pgbouncer.port}/")


async def _everything(store: Store, number: int) -> str:
    """One of all that can be asked of storage, for a conversation that is then checked and given back."""
    conversation = await store.conversation(f"title {number}")
    created = key(f"create {number}", route="POST conversations")
    first = await store.conversations.create(TENANT, "keyed", Raw(b"{}"), created)
    assert (await store.conversations.create(TENANT, "keyed", Raw(b"{}"), created)).body == first.body
    message = await store.post(conversation, f"one {number}")
    await store.post_many(conversation, ["two", "three"])
    keyed = key(f"post {number}")
    assert await store.post(conversation, "four", keyed) == await store.post(conversation, "four", keyed)
    answered = await store.post(conversation, "five", reply_to=message["id"], agent_id="general_01")
    assert answered["position"] == 5
    await store.edit(message["id"], f"edited {number}")
    await store.writes.delete(TENANT, answered["id"], key=key(f"delete {number}"))
    await store.writes.update_conversation(TENANT, conversation, title="new", metadata=UNSET, key=None)
    for anchor in (Anchor("newest"), Anchor("from", 2), Anchor("before", 3), Anchor("around", 3)):
        assert (await store.windows.read(TENANT, conversation, anchor, 3)).total == 5
    assert (await store.log.moved([(TENANT, conversation, 0)])).moved == [(conversation, 8)]
    await store.conversations.page(TENANT, 3, None)
    await store.messages.newest(TENANT, 3, None)
    agents = AgentRows(store.database, SHIPPED)
    await agents.put(TENANT, f"agent_{number}", b"{}", None)
    assert await agents.get(TENANT, f"agent_{number}") is not None
    with pytest.raises(StorageError):
        await store.post(conversation, "six", agent_id="nobody")
    assert [found["content"] for found in await store.check(conversation)] == [
        f"edited {number}",
        "two",
        "three",
        "four",
        "",
    ]
    return conversation


async def test_all_of_storage_works(bouncer_url: str) -> None:
    async with opened(bouncer_url, pgbouncer=True) as store:
        conversation = await _everything(store, 1)
        assert (await store.database.check(5), await store.database.check_synchronous(5)) == ("connected", "connected")
        append = store.writes._new_messages(
            TENANT, conversation, [Draft("user", "six")], store.committed[0][0].at, many=False, key=None
        )
        assert await Log(store.database).find(append) is None
        await store.commits.submit(append)
        found = await Log(store.database).find(append)
        assert found is not None
        assert (found.seq, found.position) == (9, 6)
        await store.writes.delete_conversation(TENANT, conversation, key=None)
        await Housekeeping(store.database).sweep()
        assert isinstance(await Statistics(store.database).refresh(), list)


async def test_many_at_once_in_several_processes(bouncer_url: str) -> None:
    async with (
        opened(bouncer_url, pgbouncer=True, pool_size=8) as one,
        opened(bouncer_url, pgbouncer=True, pool_size=8) as two,
    ):
        await bounded(*[_everything((one, two)[number % 2], number) for number in range(8)], seconds=60)
        shared = [await one.conversation() for _ in range(3)]

        async def post(number: int) -> None:
            store = (one, two)[number % 2]
            for turn in range(10):
                conversation = shared[(number + turn) % 3]
                drafts = [Draft("user", f"{number}.{turn}")]
                answer = await store.writes.post(TENANT, conversation, drafts, many=False, key=key(f"{number}.{turn}"))
                assert json.loads(answer.body)["content"] == f"{number}.{turn}"

        async def read(number: int) -> None:
            store = (two, one)[number % 2]
            for turn in range(20):
                window = await store.window(shared[(number + turn) % 3], 50)
                assert window.total == window.as_of
                await store.log.page(TENANT, shared[turn % 3], 0, limit=50, budget=10_000)

        await bounded(*map(post, range(16)), *map(read, range(16)), seconds=60)
        assert sum([len(await one.check(conversation)) for conversation in shared]) == 160


def test_migrations_run_through_it(request: pytest.FixtureRequest, postgres: PostgresServer) -> None:
    if find_pgbouncer() is None:
        pytest.skip(HOW_TO_GET_IT)
    empty: str = request.getfixturevalue("empty_postgresql_url")
    with Pgbouncer(postgres.port, server_connections=3) as pgbouncer:
        url = empty.replace(f":{postgres.port}/", f":{pgbouncer.port}/")
        config = StorageConfig(parse_database_url(url), pgbouncer=True)

        async def at_once() -> list[str]:
            return await bounded(*[asyncio.to_thread(migrate.upgrade, config) for _ in range(3)])

        assert len(set(asyncio.run(at_once()))) == 1
