"""The group commit on SQLite: the process's one writer, a thread with a connection of its own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from storage.append import (
    Append,
    Committed,
    ImportProgress,
    Moved,
    Outcome,
    Refused,
    Seen,
    Stale,
    WriteKey,
)
from storage.database import Database
from storage.engines import sqlite_pragmas
from storage.idempotency import KEY_LIFE
from storage.rows import sqlite_time
from storage.write_sqlite import (
    change_conversation,
    change_message,
    count_delta,
    event_rows,
    insert_events,
    insert_messages,
    keep_deed,
    keep_key,
    message_rows,
    set_run,
)

_FIND_KEY = (
    "SELECT fingerprint, status, answer, seq, position, lines, running_hash, last_position FROM idempotency_keys"
    " WHERE tenant = ? AND principal = ? AND route = ? AND key = ? AND created_at > ?"
)
_TO_THE_SECOND = len("2026-01-01T00:00:00")
_STREAMED_LENGTH = (
    "SELECT s.length FROM streaming_messages s JOIN messages m ON m.tenant = s.tenant AND m.id = s.message_id"
    " WHERE s.conversation_id = ? AND s.message_id = ? AND s.tenant = ? AND m.status = 'streaming'"
)
_EFFECTIVE_SEQ = (
    "SELECT coalesce(s.last_seq, m.last_seq) FROM messages m"
    " LEFT JOIN streaming_messages s ON s.conversation_id = m.conversation_id AND s.message_id = m.id"
    " AND m.status = 'streaming' WHERE m.tenant = ? AND m.id = ?"
)


class SqliteCommitter:
    """Commits groups one after the other. Writers of other processes are waited for, up to the busy timeout."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        self._connection: sqlite3.Connection | None = None

    async def commit(self, group: Sequence[Append], *, patient: bool) -> list[Outcome]:
        """The outcome of each append of the group, in order. Raises storage's errors.

        `patient` makes no difference: SQLite locks the whole file.
        """
        async with self._database.operation("log.commit"):
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, group)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    def _connect(self) -> sqlite3.Connection:
        config = self._database.config
        connection = sqlite3.connect(config.url.dsn, isolation_level=None, check_same_thread=False)
        for pragma in sqlite_pragmas(config.command_timeout / 2):
            connection.execute(pragma)
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _commit(self, group: Sequence[Append]) -> list[Outcome]:
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        # IMMEDIATE: what is read below is read with the write lock held.
        connection.execute("BEGIN IMMEDIATE")
        try:
            [epoch] = connection.execute("SELECT epoch FROM timeline").fetchone()
            writer = _GroupWriter(connection, epoch)
            outcomes = [writer.write(append) for append in group]
            writer.finish()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return outcomes


@dataclass(slots=True)
class _Head:
    """Where a conversation's log stands inside the transaction; its row is written once, at the end."""

    last_seq: int
    message_count: int
    state_seq: int
    last_activity_at: str
    advanced: bool = False


class _GroupWriter:
    """Writes the appends of one transaction, whose lock is held: what it has read nobody else changes.

    New messages and events are collected, and written by one statement each: one by one they would take twice as long.
    """

    def __init__(self, connection: sqlite3.Connection, epoch: str) -> None:
        self._connection = connection
        self._epoch = epoch
        self._heads: dict[tuple[str, str], _Head | None] = {}
        self._messages: list[tuple[Any, ...]] = []
        self._events: list[tuple[Any, ...]] = []

    def write(self, append: Append) -> Outcome:
        """One append: every check first, so that a refusal has written nothing."""
        connection = self._connection
        if append.key is not None:
            found = _known_key(connection, append.tenant, append.key, append.progress, append.at)
            if found is not None:
                return found
        head = self._head(append.tenant, append.conversation_id)
        if head is None:
            return Refused("missing")
        looks_back = append.changes_rows or bool(append.reply_ids)
        if looks_back:
            self._flush()
        refusal = _refusal(connection, append, head.state_seq)
        if refusal is not None:
            return refusal
        seq, position, at = head.last_seq + 1, head.message_count + 1, sqlite_time(append.at)
        self._messages += message_rows(append, seq, position, at)
        if append.change is not None:
            change_message(connection, append.tenant, append.conversation_id, append.change, seq, at)
        if append.delta is not None:
            count_delta(connection, append.conversation_id, append.delta, seq)
        if append.conversation is not None:
            change_conversation(connection, append.conversation_id, append.conversation, seq, at)
            head.state_seq = seq
        if append.run is not None:
            set_run(connection, append.tenant, append.conversation_id, append.run, seq)
        self._events += event_rows(append, seq, position, at)
        head.advanced = True
        head.last_seq += len(append.events)
        head.message_count += len(append.messages)
        # The time of the last activity is indexed: rewritten with every append it would cost each a new index entry.
        # (Within one second of the clock it is not a second old.)
        of_another_second = not head.last_activity_at.startswith(at[:_TO_THE_SECOND])
        if append.conversation is not None or (
            of_another_second and head.last_activity_at <= sqlite_time(append.at - timedelta(seconds=1))
        ):
            head.last_activity_at = at
        if append.key is not None:
            keep_key(connection, append, append.key, seq, position, at)
        if append.deed is not None:
            keep_deed(connection, append.tenant, append.deed)
        return Committed(seq, position, self._epoch)

    def finish(self) -> None:
        """Writes what is left."""
        self._flush()
        self._connection.executemany(
            "UPDATE conversations SET last_seq = ?, message_count = ?, last_activity_at = ? WHERE id = ?",
            [
                (head.last_seq, head.message_count, head.last_activity_at, conversation_id)
                for (_, conversation_id), head in self._heads.items()
                if head is not None and head.advanced
            ],
        )

    def _flush(self) -> None:
        insert_messages(self._connection, self._messages)
        insert_events(self._connection, self._events)
        self._messages.clear()
        self._events.clear()

    def _head(self, tenant: str, conversation_id: str) -> _Head | None:
        key = tenant, conversation_id
        if key not in self._heads:
            row = self._connection.execute(
                "SELECT last_seq, message_count, state_seq, last_activity_at FROM conversations"
                " WHERE id = ? AND tenant = ? AND deleted_at IS NULL",
                (conversation_id, tenant),
            ).fetchone()
            self._heads[key] = None if row is None else _Head(*row)
        return self._heads[key]


def _known_key(
    connection: sqlite3.Connection, tenant: str, key: WriteKey, progress: ImportProgress | None, at: datetime
) -> Outcome | None:
    row = connection.execute(
        _FIND_KEY,
        (tenant, key.principal, key.route, key.key, sqlite_time(at - KEY_LIFE)),
    ).fetchone()
    if row is None:
        # An import that goes on under a key that has expired: nothing is stored under it.
        return Moved(0, "", 0, 0, 0) if progress is not None and progress.lines_before else None
    fingerprint, status, answer, seq, position, lines, running_hash, last_position = row
    if fingerprint != key.fingerprint:
        return Refused("key_reused")
    if progress is None:
        return Seen(status, answer.encode(), seq, position)
    if lines != progress.lines_before:
        return Moved(lines, running_hash, seq, position, last_position)
    return None


def _refusal(connection: sqlite3.Connection, append: Append, state_seq: int) -> Outcome | None:
    for agent_id in append.agent_ids:
        row = connection.execute(
            "SELECT hidden FROM agents WHERE tenant = ? AND id = ?", (append.tenant, agent_id)
        ).fetchone()
        if row[0] if row is not None else agent_id not in append.shipped_agents:
            return Refused("unknown_agent", agent_id)
    for message_id in append.reply_ids:
        row = connection.execute(
            "SELECT 1 FROM messages WHERE tenant = ? AND id = ? AND conversation_id = ?",
            (append.tenant, message_id, append.conversation_id),
        ).fetchone()
        if row is None:
            return Refused("unknown_reply", message_id)
    if append.change is not None:
        row = connection.execute(_EFFECTIVE_SEQ, (append.tenant, append.change.message_id)).fetchone()
        if row is None or row[0] != append.change.expected:
            return Stale()
    if append.delta is not None:
        row = connection.execute(
            _STREAMED_LENGTH, (append.conversation_id, append.delta.message_id, append.tenant)
        ).fetchone()
        if row is None or row[0] != append.delta.offset:
            return Stale()
    if append.conversation is not None and append.conversation.expected != state_seq:
        return Stale()
    return None
