"""What tenants change about their agents, at the same time as others do."""

import itertools

import pytest

from storage.agents import AgentRows
from storage.database import Database
from storage.errors import InvalidCursor, KeyReused, NotFound
from tests.storage.store import SHIPPED, TENANT, bounded, key, opened_database

MINE = "mine"
SHIPPED_ONE = "general_01"


@pytest.fixture
def agents(database: Database) -> AgentRows:
    return AgentRows(database, SHIPPED)


async def test_an_agent_is_made_changed_and_removed(agents: AgentRows) -> None:
    assert await agents.get(TENANT, MINE) is None
    assert (await agents.put(TENANT, MINE, b'{"n":1}', None)).status == 201
    assert (await agents.put(TENANT, MINE, b'{"n":2}', None)).status == 200
    found = await agents.get(TENANT, MINE)
    assert found is not None
    assert (found.hidden, found.document) == (False, '{"n":2}')
    assert (await agents.delete(TENANT, MINE, None)).status == 204
    assert await agents.get(TENANT, MINE) is None
    with pytest.raises(NotFound):
        await agents.delete(TENANT, MINE, None)


async def test_a_shipped_agent_is_overridden_hidden_and_put_back(agents: AgentRows) -> None:
    assert (await agents.put(TENANT, SHIPPED_ONE, b'{"n":1}', None)).status == 200
    assert (await agents.delete(TENANT, SHIPPED_ONE, None)).status == 204
    hidden = await agents.get(TENANT, SHIPPED_ONE)
    assert hidden is not None
    assert hidden.hidden
    with pytest.raises(NotFound):
        await agents.delete(TENANT, SHIPPED_ONE, None)
    assert (await agents.put(TENANT, SHIPPED_ONE, b'{"n":2}', None)).status == 201
    assert await agents.get("another", SHIPPED_ONE) is None


async def test_pages_are_by_id_and_a_cursor_is_an_id(agents: AgentRows) -> None:
    ids = ["a", "a-b", "a_b", "ab", "b0", "z"]
    for agent_id in reversed(ids):
        await agents.put(TENANT, agent_id, b"{}", None)
    assert [row.id for row in await agents.page(TENANT, 50, None)] == ids
    for before, following in itertools.pairwise(ids):
        assert (await agents.page(TENANT, 1, before))[0].id == following
    assert await agents.page(TENANT, 50, "z") == []
    for garbage in ("", "A", "a b", "ä", "x" * 65, "'"):
        with pytest.raises(InvalidCursor):
            await agents.page(TENANT, 50, garbage)


async def test_a_keyed_change_is_made_once(agents: AgentRows) -> None:
    put, remove = key(route="PUT agent"), key(route="DELETE agent")
    first = await agents.put(TENANT, MINE, b"{}", put)
    await agents.delete(TENANT, MINE, remove)
    assert (await agents.delete(TENANT, MINE, remove)).replayed
    again = await agents.put(TENANT, MINE, b"{}", put)
    assert (again.status, again.body, again.replayed) == (first.status, first.body, True)
    assert await agents.get(TENANT, MINE) is None
    with pytest.raises(KeyReused):
        await agents.put(TENANT, MINE, b"{}", key(route="PUT agent", fingerprint="another request"))


async def test_of_many_that_make_the_same_agent_at_once_one_has_made_it(database_url: str) -> None:
    async with opened_database(database_url) as one, opened_database(database_url) as two:
        rows = [AgentRows(one, SHIPPED), AgentRows(two, SHIPPED)]
        for turn in range(5):
            answers = await bounded(*[rows[n % 2].put(TENANT, f"agent_{turn}", b"{}", None) for n in range(8)])
            assert sorted(answer.status for answer in answers) == [200] * 7 + [201]


async def test_an_agent_that_is_put_and_removed_by_many_is_there_or_not(database_url: str) -> None:
    async with opened_database(database_url) as one, opened_database(database_url) as two:
        rows = [AgentRows(one, SHIPPED), AgentRows(two, SHIPPED)]

        async def remove(number: int) -> int:
            try:
                return (await rows[number % 2].delete(TENANT, SHIPPED_ONE, None)).status
            except NotFound:
                return 404

        async def put(number: int) -> int:
            return (await rows[number % 2].put(TENANT, SHIPPED_ONE, b"{}", None)).status

        for _ in range(5):
            statuses = await bounded(*[(put, remove)[n // 2 % 2](n) for n in range(16)])
            # It was there at first: each removal but the last was undone by a put that made it again.
            found = await rows[0].get(TENANT, SHIPPED_ONE)
            assert found is not None
            assert statuses.count(204) == statuses.count(201) + found.hidden
            await rows[0].put(TENANT, SHIPPED_ONE, b"{}", None)
