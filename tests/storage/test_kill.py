"""Proof that acknowledged is durable: processes and servers are killed while messages are being appended."""

import asyncio
import random
import sqlite3
from collections.abc import Sequence

import pytest

from storage import migrate
from storage.config import StorageConfig
from storage.url import parse_database_url
from tests import proof
from tests.postgres_server import PostgresServer
from tests.storage.appending import Acknowledged, Appender
from tests.storage.store import Store, opened

pytestmark = [pytest.mark.proof, pytest.mark.fault]


async def _check(store: Store, conversations: Sequence[str], acknowledged: Sequence[Acknowledged]) -> int:
    """Everything acknowledged is there as it was told, everything that is there is there once. How much that is."""
    stored: dict[tuple[str, int], str] = {}
    seqs: dict[tuple[str, int], str] = {}
    for conversation in conversations:
        messages = await store.check(conversation)  # positions and seqs have no holes
        stored |= {(conversation, message["position"]): message["content"] for message in messages}
        seqs |= {(conversation, seq): message["content"] for seq, message in enumerate(messages, 1)}
    lost = [line for line in acknowledged if stored.get((line.conversation, line.position)) != line.content]
    assert lost == []
    # Nothing but creations here: the seq of a message is its position.
    assert [line for line in acknowledged if line.seq and seqs[line.conversation, line.seq] != line.content] == []
    assert len({line.content for line in acknowledged}) == len(acknowledged)
    assert len(set(stored.values())) == len(stored)
    return len(stored)


async def test_what_a_killed_process_has_acknowledged_is_there(database_url: str) -> None:
    kills = proof.count(20, full=200)
    chance = random.Random()
    acknowledged: list[Acknowledged] = []
    async with opened(database_url) as store:
        conversations = [await store.conversation() for _ in range(4)]
        for number in range(kills):
            async with Appender(database_url, f"life {number}", conversations) as appender:
                await appender.said(20)
                # At any moment of its work: what is being sent, committed or answered is cut off there.
                await asyncio.sleep(chance.uniform(0, 0.1))
                await appender.kill()
            acknowledged += appender.acknowledged
            told_twice = {(line.conversation, line.position) for line in acknowledged}
            assert len(told_twice) == len(acknowledged), "a position was told twice"
        stored = await _check(store, conversations, acknowledged)
        if store.database.dialect == "sqlite":
            with sqlite3.connect(store.database.config.url.dsn) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        name = "SQLite" if store.database.dialect == "sqlite" else "PostgreSQL"
    note = f"{len(acknowledged):,} messages acknowledged, {stored:,} stored, none lost or twice, no holes"
    proof.record("kill -9 of a process that appends", name, f"{kills} kills", note)


async def test_what_was_acknowledged_before_the_server_was_killed_is_there() -> None:
    kills = proof.count(2, full=5)
    with PostgresServer() as server:
        await asyncio.to_thread(server.create_database, "swarm")
        url = server.url("swarm")
        await asyncio.to_thread(migrate.upgrade, StorageConfig(parse_database_url(url)))
        async with opened(url) as store:
            conversations = [await store.conversation() for _ in range(4)]
        async with Appender(url, "living", conversations) as appender:
            for _ in range(kills):
                await appender.said(100)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                await appender.said(100)  # the same process goes on, with the same keys
            await appender.kill()
        async with opened(url) as store:
            stored = await _check(store, conversations, appender.acknowledged)
    note = f"{len(appender.acknowledged):,} messages acknowledged, {stored:,} stored, none lost or twice, no holes"
    proof.record("kill -9 of the database server under one that appends", "PostgreSQL", f"{kills} kills", note)
