"""The door to the database: what is counted, what is refused, and how it heals."""

import asyncio
import sqlite3
from pathlib import Path

import asyncpg
import pytest
from msgspec import Raw

from metrics.operations import Unobserved
from storage.agents import AgentRows
from storage.config import StorageConfig
from storage.conversations import Conversations
from storage.database import Database
from storage.errors import NotFound, StorageUnavailable, UnknownAgent
from storage.housekeeping import Housekeeping
from storage.records import new_id
from storage.url import parse_database_url
from tests.postgres_server import PostgresServer
from tests.storage.store import TENANT, Store, bounded, key, opened, opened_database, until
from tests.storage.test_lost_answers import through
from tests.tcp_proxy import TcpProxy


class Recorder:
    """An observer that keeps what it is told: names, seconds, errors."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, str | None]] = []

    def observe(self, operation: str, seconds: float, error: str | None) -> None:
        self.seen.append((operation, seconds, error))

    def take(self) -> list[tuple[str, str | None]]:
        taken = [(operation, error) for operation, _, error in self.seen]
        self.seen.clear()
        return taken


async def _read(database: Database) -> None:
    await Conversations(database).page(TENANT, 1, None)


async def test_each_operation_is_observed_once_under_its_name(database_url: str) -> None:
    recorder = Recorder()
    async with opened(database_url, observer=recorder) as store:
        conversation = await store.conversation()
        assert recorder.take() == [("conversations.create", None)]
        message = await store.post(conversation, "text")
        assert recorder.take() == [("log.commit", None)]
        await store.edit(message["id"], "edited")
        assert recorder.take() == [("messages.get", None), ("log.commit", None)]
        await store.window(conversation)
        await store.log.page(TENANT, conversation, 0, limit=1, budget=1)
        await store.log.moved([(TENANT, conversation, 0)])
        await store.conversations.page(TENANT, 1, None)
        await store.messages.newest(TENANT, 1, None)
        await AgentRows(store.database, frozenset()).page(TENANT, 1, None)
        names = ["messages.window", "log.page", "log.moved", "conversations.page", "messages.newest", "agents.page"]
        assert recorder.take() == [(name, None) for name in names]
        await Housekeeping(store.database).sweep()
        assert recorder.take() == [
            ("housekeeping.find", None),
            ("housekeeping.forget", None),
            ("housekeeping.credentials", None),
        ]
        assert all(0 <= seconds < 30 for _, seconds, _ in recorder.seen)


async def test_failures_are_observed_too(database_url: str) -> None:
    recorder = Recorder()
    async with opened(database_url, observer=recorder) as store:
        conversation = await store.conversation()
        recorder.take()
        with pytest.raises(UnknownAgent):  # a refusal is an outcome, not a failure
            await store.post(conversation, "text", agent_id="nobody")
        assert recorder.take() == [("log.commit", None)]
        with pytest.raises(NotFound):
            await AgentRows(store.database, frozenset()).delete(TENANT, "nobody", None)
        assert recorder.take() == [("agents.delete", "NotFound")]
        await store.execute("DROP TABLE agents")
        error = "OperationalError" if store.database.dialect == "sqlite" else "UndefinedTableError"
        with pytest.raises(Exception, match="agents"):
            await AgentRows(store.database, frozenset()).get(TENANT, "general_01")
        assert recorder.take() == [("agents.get", error)]


async def test_before_it_is_ready_everything_is_unavailable(database_url: str) -> None:
    database = Database(StorageConfig(parse_database_url(database_url)), Unobserved())
    try:
        with pytest.raises(StorageUnavailable, match="has not been reached yet"):
            await _read(database)
        with pytest.raises(StorageUnavailable):
            await Conversations(database).create(TENANT, None, Raw(b"{}"), None)
        assert not database.ready
    finally:
        await database.close()


async def test_a_server_that_comes_late_is_found(postgres: PostgresServer, empty_postgresql_url: str) -> None:
    async with TcpProxy("127.0.0.1", postgres.port) as proxy:
        await proxy.refuse()
        database = Database(StorageConfig(parse_database_url(through(proxy, empty_postgresql_url))), Unobserved())
        await database.start()
        try:
            await until(lambda: "has not been reached yet" not in database.reason)
            with pytest.raises(StorageUnavailable):
                await _read(database)
            assert await database.check(5) != "connected"
            assert await database.check_synchronous(5) != "connected"
            await proxy.accept()
            await asyncio.wait_for(database.wait_until_ready(), 30)
            await _read(database)
            assert len(database.epoch) == 6
            assert (await database.check(5), await database.check_synchronous(5)) == ("connected", "connected")
        finally:
            await database.close()


async def test_a_database_that_is_made_late_is_found(postgres: PostgresServer) -> None:
    database = Database(StorageConfig(parse_database_url(postgres.url("made_late"))), Unobserved())
    await database.start()
    try:
        await until(lambda: "has not been reached yet" not in database.reason)
        await asyncio.to_thread(postgres.create_database, "made_late")
        await asyncio.wait_for(database.wait_until_ready(), 30)
        await _read(database)
    finally:
        await database.close()
        await asyncio.to_thread(postgres.drop_database, "made_late")


async def test_a_file_that_another_process_holds_is_opened_when_it_is_free(empty_sqlite_url: str) -> None:
    url = parse_database_url(empty_sqlite_url)
    holder = sqlite3.connect(url.dsn, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    database = Database(StorageConfig(url, command_timeout=0.2), Unobserved())
    await database.start()
    try:
        await until(lambda: "has not been reached yet" not in database.reason)
        assert not database.ready
        holder.execute("ROLLBACK")
        await asyncio.wait_for(database.wait_until_ready(), 30)
        await _read(database)
    finally:
        holder.close()
        await database.close()


async def test_a_file_in_folders_that_are_not_there_yet_is_made(tmp_path: Path) -> None:
    path = tmp_path / "var" / "data" / "swarm.db"
    async with opened_database(f"sqlite:///{path}") as database:
        await _read(database)
    assert path.exists()


async def test_an_exhausted_pool_refuses_in_bounded_time(database_url: str) -> None:
    recorder = Recorder()
    async with opened_database(database_url, observer=recorder, pool_size=2, pool_timeout=0.2) as database:
        async with database.driver(), database.driver():
            loop = asyncio.get_running_loop()
            started = loop.time()
            with pytest.raises(StorageUnavailable, match="no database connection became free in time"):
                await _read(database)
            assert 0.15 < loop.time() - started < 5
            assert recorder.take() == [("conversations.page", "TimeoutError")]
            assert await database.check(0.1) != "connected"
        await bounded(*[_read(database) for _ in range(20)])


async def test_few_reads_of_sqlite_are_under_way_at_once(sqlite_url: str) -> None:
    used: list[int] = []

    class Looking:
        def observe(self, operation: str, seconds: float, error: str | None) -> None:
            used.append(database.connections_used())

    async with opened_database(sqlite_url, observer=Looking(), pool_timeout=0.2) as database:
        await bounded(*[_read(database) for _ in range(50)])
        assert len(used) == 50
        assert max(used) <= 2
        async with database._turn():
            await _read(database)
            async with database._turn():
                with pytest.raises(StorageUnavailable, match="too many reads"):
                    await bounded(_read(database), seconds=5)
        await bounded(*[_read(database) for _ in range(50)])


async def test_a_client_that_goes_away_leaves_its_connection_in_order(database_url: str) -> None:
    async with opened_database(database_url, pool_size=1) as database:
        conversations = Conversations(database)
        for pause in range(60):
            for work in (_read(database), conversations.create(TENANT, "t", Raw(b"{}"), None)):
                leaving = asyncio.ensure_future(work)
                # At another point of its work each time.
                await asyncio.sleep(pause / 20_000)
                leaving.cancel()
                await asyncio.wait([leaving])
                assert leaving.cancelled() or leaving.exception() is None
        await until(lambda: not database._under_way)
        page, _ = await asyncio.wait_for(conversations.page(TENANT, 100, None), 30)
        assert [conversation.title for conversation in page] == ["t"] * 60


async def test_reads_wait_for_no_writer(store: Store) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, "text")
    async with store.database.transaction("test") as connection:
        await connection.exec_driver_sql("UPDATE conversations SET title = 'being written'")
        await asyncio.wait_for(store.window(conversation), 2)
        await asyncio.wait_for(store.messages.get(TENANT, message["id"]), 2)
        assert await store.database.check(2) == "connected"
        assert await store.database.check_synchronous(2) == "connected"


async def test_after_all_connections_were_ended_the_pool_heals(postgresql_url: str) -> None:
    async with opened(postgresql_url, pool_size=4) as store:
        conversation = await store.conversation()
        await bounded(*[store.window(conversation) for _ in range(16)])
        for _ in range(3):
            ender = await asyncpg.connect(postgresql_url)
            ended = await ender.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await ender.close()
            assert ended == 4
            # Each connection may be found broken once, by whoever is given it.
            outcomes = await asyncio.gather(*[store.window(conversation) for _ in range(8)], return_exceptions=True)
            assert sum(isinstance(outcome, StorageUnavailable) for outcome in outcomes) <= 4
            assert all(
                not isinstance(outcome, Exception) or isinstance(outcome, StorageUnavailable) for outcome in outcomes
            )
            await bounded(*[store.window(conversation) for _ in range(16)])
            await store.post(conversation, "still here", key(new_id()))
        assert len(await store.check(conversation)) == 3
