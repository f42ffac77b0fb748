"""The group commit on SQLite: the process's one writer, a thread with a connection of its own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from msgspec.structs import astuple

from storage.append import (
    Append,
    Committed,
    ConversationChange,
    ImportProgress,
    MessageChange,
    Moved,
    Outcome,
    Refused,
    Seen,
    Stale,
    WriteKey,
    fill,
)
from storage.database import Database
from storage.engines import sqlite_pragmas
from storage.idempotency import KEY_LIFE
from storage.rows import sqlite_time

_FIND_KEY = (
    "SELECT fingerprint, status, answer, seq, position, lines, running_hash, last_position FROM idempotency_keys"
    " WHERE tenant = ? AND principal = ? AND route = ? AND key = ? AND created_at > ?"
)
_ADVANCE_KEY = (
    "UPDATE idempotency_keys SET lines = ?, running_hash = ?, seq = ?, last_position = ?"
    " WHERE tenant = ? AND principal = ? AND route = ? AND key = ?"
)


class SqliteCommitter:
    """Commits groups one after the other. Writers of other processes are waited for, up to the busy timeout."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        self._connection: sqlite3.Connection | None = None

    async def commit(self, group: Sequence[Append], *, patient: bool) -> list[Outcome]:
        """The outcome of each append of the group, in order. Raises storage's errors, and the driver's for a defect.

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
            outcomes = [_write(connection, append) for append in group]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return outcomes


def _write(connection: sqlite3.Connection, append: Append) -> Outcome:
    """One append: every check first, so that a refusal has written nothing."""
    if append.key is not None:
        found = _known_key(connection, append.tenant, append.key, append.progress, append.at)
        if found is not None:
            return found
    row = connection.execute(
        "SELECT last_seq, message_count, state_seq, last_activity_at FROM conversations"
        " WHERE id = ? AND tenant = ? AND deleted_at IS NULL",
        (append.conversation_id, append.tenant),
    ).fetchone()
    if row is None:
        return Refused("missing")
    last_seq, message_count, state_seq, last_activity_at = row
    refusal = _refusal(connection, append, state_seq)
    if refusal is not None:
        return refusal
    seq, position, at = last_seq + 1, message_count + 1, sqlite_time(append.at)
    _insert_messages(connection, append, seq, position, at)
    if append.change is not None:
        _change_message(connection, append.tenant, append.change, seq, at)
    if append.conversation is not None:
        _change_conversation(connection, append.conversation_id, append.conversation, seq, at)
    connection.executemany(
        "INSERT INTO events (conversation_id, seq, tenant, kind, message_id, payload) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                append.conversation_id,
                seq + offset,
                append.tenant,
                event.kind,
                event.message_id,
                fill(event.payload, seq + offset, position + event.rank).decode(),
            )
            for offset, event in enumerate(append.events)
        ],
    )
    # The time of the last activity is indexed: rewritten with every append it would cost each a new index entry.
    a_second_ago = sqlite_time(append.at - timedelta(seconds=1))
    connection.execute(
        "UPDATE conversations SET last_seq = ?, message_count = ?, last_activity_at = ? WHERE id = ?",
        (
            last_seq + len(append.events),
            message_count + len(append.messages),
            at if append.conversation is not None or last_activity_at <= a_second_ago else last_activity_at,
            append.conversation_id,
        ),
    )
    if append.key is not None:
        _keep_key(connection, append, append.key, seq, position, at)
    return Committed(seq, position)


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
        row = connection.execute(
            "SELECT last_seq FROM messages WHERE tenant = ? AND id = ?",
            (append.tenant, append.change.message_id),
        ).fetchone()
        if row is None or row[0] != append.change.expected:
            return Stale()
    if append.conversation is not None and append.conversation.expected != state_seq:
        return Stale()
    return None


def _insert_messages(connection: sqlite3.Connection, append: Append, seq: int, position: int, at: str) -> None:
    if not append.messages:
        return
    created = {event.message_id: offset for offset, event in enumerate(append.events)}
    connection.executemany(
        "INSERT INTO messages (tenant, conversation_id, position, created_at, updated_at, last_seq, id, role, agent_id,"
        " content, status, reply_to, model, tool_calls, usage, metadata, length, sha256)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                append.tenant,
                append.conversation_id,
                position + rank,
                at,
                at,
                seq + created[message.id],
                *astuple(message),
            )
            for rank, message in enumerate(append.messages)
        ],
    )


def _change_message(connection: sqlite3.Connection, tenant: str, change: MessageChange, seq: int, at: str) -> None:
    if change.tombstone is not None:
        # Before the new event is there: only the earlier ones become tombstones.
        connection.execute(
            "UPDATE events SET kind = 'message.deleted', payload = ? WHERE message_id = ?",
            (change.tombstone, change.message_id),
        )
    connection.execute(
        "UPDATE messages SET content = ?, status = ?, model = ?, tool_calls = ?, usage = ?, metadata = ?, length = ?,"
        " sha256 = ?, updated_at = ?, last_seq = ? WHERE tenant = ? AND id = ?",
        (
            change.content,
            change.status,
            change.model,
            change.tool_calls,
            change.usage,
            change.metadata,
            change.length,
            change.sha256,
            at,
            seq,
            tenant,
            change.message_id,
        ),
    )


def _change_conversation(
    connection: sqlite3.Connection, conversation_id: str, change: ConversationChange, seq: int, at: str
) -> None:
    connection.execute(
        "UPDATE conversations SET title = ?, metadata = ?, state_seq = ?, updated_at = ?, deleted_at = ? WHERE id = ?",
        (change.title, change.metadata, seq, at, at if change.deleted else None, conversation_id),
    )


def _keep_key(connection: sqlite3.Connection, append: Append, key: WriteKey, seq: int, position: int, at: str) -> None:
    last_position = position + len(append.messages) - 1
    progress = append.progress
    if progress is not None and progress.lines_before:
        connection.execute(
            _ADVANCE_KEY,
            (
                progress.lines,
                progress.running_hash,
                seq + len(append.events) - 1,
                last_position,
                append.tenant,
                key.principal,
                key.route,
                key.key,
            ),
        )
        return
    # REPLACE: what stands there under the same key has expired.
    connection.execute(
        "INSERT OR REPLACE INTO idempotency_keys (tenant, principal, route, key, fingerprint, status, answer, seq,"
        " position, lines, running_hash, last_position, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            append.tenant,
            *astuple(key),
            append.status,
            "" if progress else append.answer.decode(),
            seq if progress is None else seq + len(append.events) - 1,
            position,
            progress and progress.lines,
            progress and progress.running_hash,
            last_position,
            at,
        ),
    )
