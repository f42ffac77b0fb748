"""PostgreSQL fails under load: 503 meanwhile, nothing lost or twice, streams stay, and the pool is empty afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import psutil
import psycopg
import pytest

from tests import proof
from tests.faults.deployment import Deployment
from tests.faults.follower import until
from tests.faults.load import Load, loaded
from tests.faults.writer import Writer, check_acknowledged, stored
from tests.postgres_server import PostgresServer
from tests.tcp_proxy import TcpProxy
from tests.valkey_server import ValkeyServer

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

_HEALED = 10.0  # seconds from when it is back
# Of a request: what it waits for a connection, for a statement, in the queue of appends, and for a busy machine.
_BOUNDED = 5.0 + 10.0 + 10.0 + 5.0


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that the test may kill, with an empty database."""
    with PostgresServer() as server:
        server.create_database("swarm")
        yield server


@asynccontextmanager
async def _deployed(
    url: str, valkey: ValkeyServer, streams: int, rate: float = 50
) -> AsyncIterator[tuple[Deployment, Load]]:
    async with Deployment(url, valkey.url) as deployment, loaded(deployment.port, streams, rate) as load:
        yield deployment, load


async def _used_connections(deployment: Deployment) -> float:
    return await deployment.metric("db_client_connections", state="used")


async def _nothing_checked_out(deployment: Deployment) -> None:
    async with asyncio.timeout(30):
        while await _used_connections(deployment):
            await asyncio.sleep(0.1)


def _slowest(load: Load) -> float:
    return max(writer.slowest for writer in load.writers)


def _unavailable(load: Load) -> int:
    return sum(writer.unavailable for writer in load.writers)


def _streams_stayed(load: Load) -> None:
    assert {follower.connections for follower in load.followers} == {1}, "a stream was closed"


async def test_a_killed_server_is_503_until_it_is_back_and_no_seq_is_issued_twice(
    own_postgres: PostgresServer, valkey: ValkeyServer
) -> None:
    streams, kills = proof.count(40, 200), proof.count(2, 5)
    healed = 0.0
    async with _deployed(own_postgres.url("swarm"), valkey, streams) as (deployment, load):
        for _ in range(kills):
            await load.goes_on(30)
            refused = _unavailable(load)
            await asyncio.to_thread(own_postgres.kill)
            await until(lambda: _unavailable(load) > refused, "503")  # noqa: B023
            await asyncio.to_thread(own_postgres.start)
            begun = time.perf_counter()
            await load.goes_on(10)
            healed = max(healed, time.perf_counter() - begun)
        await load.goes_on(30)
        await _nothing_checked_out(deployment)
        _streams_stayed(load)
    proof.within(healed, _HEALED, "healed")
    proof.record(
        f"kill -9 of PostgreSQL under {streams} streams and 50 messages/s",
        "postgresql",
        f"{kills} kills, {load.told}",
        f"{_unavailable(load)} times 503; healed {healed:.1f} s after it was back; no stream closed",
    )


async def test_backends_that_are_ended_again_and_again_leave_nothing_checked_out(
    postgresql_url: str, valkey: ValkeyServer
) -> None:
    times = proof.count(15, 100)
    ended = 0
    async with _deployed(postgresql_url, valkey, 40) as (deployment, load):

        def end() -> int:
            with psycopg.connect(postgresql_url, autocommit=True) as connection:
                ours = "application_name = 'swarm' AND datname = current_database()"
                return len(
                    connection.execute(
                        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}"
                    ).fetchall()
                )

        for _ in range(times):
            await asyncio.sleep(random.uniform(0, 0.2))  # the load goes on
            ended += await asyncio.to_thread(end)
        await load.goes_on(30)
        await _nothing_checked_out(deployment)
        _streams_stayed(load)
    proof.within(_slowest(load), _BOUNDED, "the slowest answer")
    proof.record(
        "backends of PostgreSQL terminated under 50 messages/s",
        "postgresql",
        f"{ended} in {times} strokes, {load.told}",
        f"slowest answer {_slowest(load):.1f} s; 0 connections checked out afterwards",
    )


@contextmanager
def _suspended(server: PostgresServer) -> Iterator[None]:
    """All of its processes."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    try:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


async def test_a_server_that_hangs_bounds_every_answer_and_the_pool_is_empty_afterwards(
    own_postgres: PostgresServer, valkey: ValkeyServer
) -> None:
    seconds = proof.count(4, 20)
    async with _deployed(own_postgres.url("swarm"), valkey, 40) as (deployment, load):
        await load.goes_on(30)
        with _suspended(own_postgres):
            await asyncio.sleep(seconds)  # the fault lasts, under load
        await load.goes_on(30)
        await _nothing_checked_out(deployment)
        _streams_stayed(load)
    proof.within(_slowest(load), _BOUNDED, "the slowest answer")
    proof.record(
        f"SIGSTOP of PostgreSQL for {seconds} s under 50 messages/s",
        "postgresql",
        f"{load.told}; slowest answer {_slowest(load):.1f} s",
        f"{_unavailable(load)} times 503; 0 connections checked out afterwards; no stream closed",
    )


async def test_workers_boot_without_it_say_so_and_serve_when_it_comes(
    own_postgres: PostgresServer, valkey: ValkeyServer
) -> None:
    url = own_postgres.url("swarm")
    await asyncio.to_thread(own_postgres.stop)
    deployment = Deployment(url, valkey.url)
    await deployment.start(healthy=False)
    try:
        async with aiohttp.ClientSession(deployment.origin) as session, asyncio.timeout(30):
            status = 0
            while status != 503:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get("/health") as answer:
                        status, health = answer.status, await answer.json()
                        assert health["status"] == "unhealthy"
        await asyncio.to_thread(own_postgres.start)
        begun = time.perf_counter()
        assert (await deployment.healthy())["status"] == "healthy"
        took = time.perf_counter() - begun
        assert len(deployment.worker_processes()) == 2
    finally:
        await deployment.close()
    proof.record("PostgreSQL absent when the workers boot", "postgresql", "503 meanwhile", f"served {took:.1f} s later")


@pytest.mark.parametrize("keyed", [True, False], ids=["with a key", "without"])
async def test_an_answer_to_commit_that_is_lost_leaves_one_message(
    postgresql_url: str, valkey: ValkeyServer, keyed: bool
) -> None:
    times = proof.count(5, 50)
    host, _, rest = postgresql_url.partition("@")[2].partition(":")
    port, _, name = rest.partition("/")
    answers: list[int] = []
    async with TcpProxy(host, int(port)) as proxy:
        url = f"postgresql://swarm@127.0.0.1:{proxy.port}/{name}"
        async with (
            Deployment(url, valkey.url, workers=1) as deployment,
            aiohttp.ClientSession(deployment.origin) as session,
            await psycopg.AsyncConnection.connect(postgresql_url, autocommit=True) as witness,
        ):
            async with session.post("/api/conversations", json={}) as answer:
                conversation_id = str((await answer.json())["id"])

            async def post(text: str, headers: dict[str, str]) -> int:
                body = {"role": "user", "content": text}
                path = f"/api/conversations/{conversation_id}/messages"
                async with session.post(path, json=body, headers=headers) as answer:
                    assert answer.status in {201, 503}, await answer.text()
                    return answer.status

            async def count(text: str) -> int:
                found = await witness.execute("SELECT count(*) FROM messages WHERE content = %s", (text,))
                row = await found.fetchone()
                assert row is not None
                return int(row[0])

            number = cut = 0
            while cut < times:
                number += 1
                text = f"message-{number}"
                assert await post(f"before-{number}", {}) == 201  # over a connection that is there, and will be used
                headers = {"Idempotency-Key": text} if keyed else {}
                proxy.hold_server_data()
                posting = asyncio.create_task(post(text, headers))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        while not await count(text):  # committed, and its answer is held
                            await asyncio.sleep(0.005)
                        cut += 1
                        proxy.cut_all()
                proxy.release()
                answers.append(await posting)
                while keyed and answers[-1] != 201:
                    answers.append(await post(text, headers))
                assert await count(text) == 1
            texts, _ = await stored(session, conversation_id)
            assert len(set(texts.values())) == len(texts) == 2 * number
    proof.record(
        f"the connection cut between COMMIT and its answer, {'with a key' if keyed else 'without'}",
        "postgresql",
        f"{times} times, one message each",
        f"{answers.count(201)} answers were 201, {answers.count(503)} were 503",
    )


async def test_processes_that_share_conversations_never_deadlock_and_a_locked_one_delays_no_other(
    postgresql_url: str, valkey: ValkeyServer
) -> None:
    messages = proof.count(600, 10_000)
    async with (
        Deployment(postgresql_url, valkey.url, workers=1) as one,
        Deployment(postgresql_url, valkey.url, workers=1) as other,
        aiohttp.ClientSession(one.origin) as first,
        aiohttp.ClientSession(other.origin) as second,
        await psycopg.AsyncConnection.connect(postgresql_url) as outside,
    ):
        ids = []
        for _ in range(12):
            async with first.post("/api/conversations", json={}) as answer:
                ids.append(str((await answer.json())["id"]))
        writers = [Writer(session, random.sample(ids, len(ids))) for session in (first, second) for _ in range(8)]
        running = [asyncio.create_task(writer.run()) for writer in writers]
        await until(lambda: sum(len(writer.acknowledged) for writer in writers) >= messages, "messages", 300)
        for writer in writers:
            writer.stop.set()
        await asyncio.gather(*running)
        await check_acknowledged(first, writers, ids)
        found = await outside.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        [deadlocks] = await found.fetchone() or [None]
        assert deadlocks == 0
        assert not [writer for writer in writers if writer.unavailable]
        quiet = await _delays(first, ids[1:])
        await outside.execute("SELECT 1 FROM conversations WHERE id = %s FOR UPDATE", (ids[0],))
        waiting = asyncio.create_task(_post(first, ids[0]))
        beside = await _delays(first, ids[1:])
        assert not waiting.done()
        await outside.rollback()
        assert await waiting == 201
    proof.record(
        "two processes, 16 writers, 12 conversations in 16 orders",
        "postgresql",
        f"{sum(len(writer.acknowledged) for writer in writers)} messages, 0 deadlocks, none refused",
        f"others beside a locked one: median {statistics.median(beside):.1f} ms, {statistics.median(quiet):.1f} before",
    )


async def _post(session: aiohttp.ClientSession, conversation_id: str) -> int:
    body: dict[str, Any] = {"role": "user", "content": f"{time.time_ns()}"}
    async with session.post(f"/api/conversations/{conversation_id}/messages", json=body) as answer:
        return answer.status


async def _delays(session: aiohttp.ClientSession, ids: list[str]) -> list[float]:
    """Of one post to each, ten times, in milliseconds."""
    delays = []
    for conversation_id in ids * 10:
        begun = time.perf_counter()
        assert await _post(session, conversation_id) == 201
        delays.append((time.perf_counter() - begun) * 1_000)
    return delays
