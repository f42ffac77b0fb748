"""How much of the database's own speed is left: the group commit in process, and the import."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
from msgspec import Raw
from prometheus_client import CollectorRegistry

from bench.fan_out import Wrong
from bench.programs import Program, swarm
from bench.session import Session
from bench.table import Row, median, ratios, spread
from events.appending import Appending
from events.conversation_log import ConversationLog, Draft
from metrics.commits import CommitMetrics
from metrics.operations import Unobserved
from storage.append import Append, fill
from storage.commit_postgresql import PostgresqlCommitter
from storage.commit_sqlite import SqliteCommitter
from storage.config import CommitConfig, StorageConfig
from storage.conversations import Conversations
from storage.database import Database
from storage.group_commit import GroupCommit
from storage.log import Log
from storage.records import now
from storage.url import parse_database_url

TENANT = "default"
_EVENTS = ("conversation_id", "seq", "tenant", "kind", "message_id", "payload", "at")
_MESSAGES = (
    *("tenant", "conversation_id", "position", "created_at", "updated_at", "last_seq", "id", "role", "agent_id"),
    *("content", "status", "reply_to", "model", "tool_calls", "usage", "metadata", "length", "sha256"),
)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Database, GroupCommit, ConversationLog]]:
    """Storage and the log in this process, as the server has them; no window is kept."""
    database = Database(StorageConfig(parse_database_url(url), cache_bytes=0), Unobserved())
    await database.start()
    await database.wait_until_ready()
    lite = database.dialect == "sqlite"
    commits = GroupCommit(
        SqliteCommitter(database) if lite else PostgresqlCommitter(database),
        Log(database),
        CommitConfig(),
        lambda append, committed: None,
        CommitMetrics(CollectorRegistry()),
        committers=1 if lite else 3,
    )
    await commits.start()
    try:
        yield database, commits, ConversationLog(database, Appending(database, commits), frozenset())
    finally:
        await commits.close()
        await database.close()


async def new_conversation(database: Database) -> str:
    made = await Conversations(database).create(TENANT, "bench", Raw(b"{}"), None)
    return str(json.loads(made.body)["id"])


def commit(session: Session) -> Iterator[Row]:
    """Groups of 100 messages, fed in process, beside the same rows by the bare driver."""
    count = session.size(20_000, 4_000)
    for database in ("postgresql", "sqlite"):
        grouped, bare = [], []
        for _ in session.rounds(5):
            ours, theirs = asyncio.run(_commits(session.url(database), count))
            grouped.append(ours)
            bare.append(theirs)
            session.say(f"{database}: {ours:,.0f} messages/s in groups, {theirs:,.0f} by the driver")
        found = ratios(grouped, bare)
        yield Row(
            f"group commit in process ÷ bare driver, 100 messages a commit, {database}",
            f"{spread(found, digits=2)} ({spread(grouped, digits=0)} and {spread(bare, 'messages/s', 0)})",
            "≥ 0.6",
            median(found) >= 0.6,
            raw={"grouped": grouped, "bare": bare},
        )


async def _commits(url: str, count: int, size: int = 100) -> tuple[float, float]:
    async with opened(url) as (database, commits, writes):
        ours, theirs = await new_conversation(database), await new_conversation(database)
        draft = Draft("user", "x" * 200)

        def appends(conversation: str) -> list[Append]:
            at = now()
            return [writes._new_messages(TENANT, conversation, [draft], at, many=False, key=None) for _ in range(count)]

        groups = _batched(appends(ours), size)
        rows = [_rows(theirs, group, 1 + n * size) for n, group in enumerate(_batched(appends(theirs), size))]
        begun = time.perf_counter()
        for group in groups:
            await asyncio.gather(*map(commits.submit, group))
        grouped = count / (time.perf_counter() - begun)
        if database.dialect == "sqlite":
            bare = count / _by_sqlite(url.removeprefix("sqlite:///"), theirs, rows)
        else:
            async with database.driver() as driver:
                bare = count / await _by_asyncpg(driver, theirs, rows)
        return grouped, bare


def _batched(appends: list[Append], size: int) -> list[list[Append]]:
    return [appends[first : first + size] for first in range(0, len(appends), size)]


def _rows(
    conversation: str, group: Sequence[Append], first: int
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The rows of messages and of events that a group leaves."""
    messages, events = [], []
    for number, append in enumerate(group, first):
        [message], [event] = append.messages, append.events
        at = append.at
        messages.append(
            (
                *(TENANT, conversation, number, at, at, number, message.id, message.role, message.agent_id),
                *(message.content, message.status, message.reply_to, message.model, message.tool_calls, message.usage),
                *(message.metadata, message.length, message.sha256),
            )
        )
        payload = fill(event.payload, number, number).decode()
        events.append((conversation, number, TENANT, event.kind, message.id, payload, at))
    return messages, events


async def _by_asyncpg(driver: Any, conversation: str, groups: list[tuple[list[Any], list[Any]]]) -> float:
    """The driver's own way for many rows, prepared once, each group in a transaction."""
    insert_message = await driver.prepare(_insert("messages", _MESSAGES, "${}"))
    insert_event = await driver.prepare(_insert("events", _EVENTS, "${}"))
    begun = time.perf_counter()
    for messages, events in groups:
        async with driver.transaction():
            await driver.execute(
                "UPDATE conversations SET last_seq = last_seq + $2, message_count = message_count + $2 WHERE id = $1",
                conversation,
                len(messages),
            )
            await insert_message.executemany(messages)
            await insert_event.executemany(events)
    return time.perf_counter() - begun


def _by_sqlite(path: str, conversation: str, groups: list[tuple[list[Any], list[Any]]]) -> float:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        insert_message, insert_event = _insert("messages", _MESSAGES, "?"), _insert("events", _EVENTS, "?")
        begun = time.perf_counter()
        for messages, events in groups:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "UPDATE conversations SET last_seq = last_seq + ?, message_count = message_count + ? WHERE id = ?",
                (len(messages), len(messages), conversation),
            )
            connection.executemany(insert_message, map(_as_text, messages))
            connection.executemany(insert_event, map(_as_text, events))
            connection.execute("COMMIT")
        return time.perf_counter() - begun
    finally:
        connection.close()


def _as_text(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.isoformat() if hasattr(each, "isoformat") else each for each in row)


def _insert(table: str, columns: Sequence[str], mark: str) -> str:
    marks = ", ".join(mark.format(number) for number in range(1, len(columns) + 1))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 (constants)


def imports(session: Session) -> Iterator[Row]:
    """NDJSON of messages of 200 bytes, beside what the database itself takes at most."""
    count = session.size(50_000, 5_000)
    lines = b"".join(
        json.dumps({"role": "user", "content": "x" * 150, "metadata": {"n": n}}, separators=(",", ":")).encode() + b"\n"
        for n in range(count)
    )
    for database, name in (("postgresql", "COPY"), ("sqlite", "executemany in one transaction")):
        imported, bare = [], []
        for _ in session.rounds(5):
            url = session.url(database)
            with swarm(url) as program:
                conversation = program.ask("POST", "/api/conversations", {"title": "bench"})["id"]
                imported.append(count / _import(program, conversation, lines, count))
            bare.append(count / asyncio.run(_copied(url, session.url(database), conversation)))
            session.say(f"{database}: {imported[-1]:,.0f} messages/s imported, {bare[-1]:,.0f} by {name}")
        found = ratios(imported, bare)
        yield Row(
            f"NDJSON import ÷ {name}, {database}",
            f"{spread(found, digits=2)} ({spread(imported, digits=0)} and {spread(bare, 'messages/s', 0)})",
            "≥ 0.5",
            median(found) >= 0.5,
            raw={"imported": imported, "bare": bare},
        )


def _import(program: Program, conversation: str, lines: bytes, count: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", program.port, timeout=300)
    begun = time.perf_counter()
    connection.request(
        "POST", f"/api/conversations/{conversation}/messages", lines, {"Content-Type": "application/x-ndjson"}
    )
    answer = connection.getresponse()
    found = json.loads(answer.read())
    seconds = time.perf_counter() - begun
    connection.close()
    if answer.status != 200 or found["accepted"] != count:
        raise Wrong(f"import: {answer.status} {found}")
    return seconds


async def _copied(source: str, target: str, conversation: str) -> float:
    """Seconds for the rows that the import has left, into new tables with the same indexes, in one transaction."""
    async with opened(target):
        pass  # makes the tables
    messages, events = f"SELECT {', '.join(_MESSAGES)} FROM messages", f"SELECT {', '.join(_EVENTS)} FROM events"  # noqa: S608
    if source.startswith("sqlite"):
        return _copied_by_sqlite(source, target, messages, events)
    connection = await asyncpg.connect(source)
    try:
        rows = (
            [tuple(row) for row in await connection.fetch(messages)],
            [tuple(row) for row in await connection.fetch(events)],
        )
    finally:
        await connection.close()
    connection = await asyncpg.connect(target)
    try:
        begun = time.perf_counter()
        async with connection.transaction():
            await connection.copy_records_to_table("messages", records=rows[0], columns=_MESSAGES)
            await connection.copy_records_to_table("events", records=rows[1], columns=_EVENTS)
        return time.perf_counter() - begun
    finally:
        await connection.close()


def _copied_by_sqlite(source: str, target: str, messages: str, events: str) -> float:
    with contextlib.closing(sqlite3.connect(Path(source.removeprefix("sqlite:///")))) as connection:
        rows = connection.execute(messages).fetchall(), connection.execute(events).fetchall()
    with contextlib.closing(sqlite3.connect(target.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        begun = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_insert("messages", _MESSAGES, "?"), rows[0])
        connection.executemany(_insert("events", _EVENTS, "?"), rows[1])
        connection.execute("COMMIT")
        return time.perf_counter() - begun
