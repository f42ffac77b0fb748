"""What an append leaves in SQLite's tables, statement by statement, inside the committer's transaction."""

from __future__ import annotations

import sqlite3
from itertools import chain
from typing import Any

from msgspec.structs import astuple

from storage.append import Append, ConversationChange, Delta, MessageChange, RunState, WriteKey, fill
from storage.audit import audit_row
from storage.deed import Deed
from storage.rows import sqlite_time

_ADVANCE_KEY = (
    "UPDATE idempotency_keys SET lines = ?, running_hash = ?, seq = ?, last_position = ?"
    " WHERE tenant = ? AND principal = ? AND route = ? AND key = ?"
)
_SET_RUN = (
    "INSERT INTO runs (tenant, id, conversation_id, agent_id, state, message_id, attempt, error, created_at,"
    " started_at, ended_at, last_seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (tenant, id) DO UPDATE SET agent_id = excluded.agent_id, state = excluded.state,"
    " message_id = excluded.message_id, attempt = excluded.attempt, error = excluded.error,"
    " created_at = excluded.created_at, started_at = excluded.started_at, ended_at = excluded.ended_at,"
    " last_seq = excluded.last_seq"
)


class _Insert:
    """Many rows of one table: so many by each statement that one row costs a quarter less than by itself.

    Hundreds would be no cheaper. SQLite takes 999 parameters at least: 50 rows of the widest table have 900.
    """

    AT_ONCE = 50

    def __init__(self, table: str, *columns: str) -> None:
        into = f"INSERT INTO {table} ({', '.join(columns)}) VALUES "  # noqa: S608 (constants)
        row = f"({', '.join('?' * len(columns))})"
        self._one = into + row
        self._many = into + ", ".join([row] * self.AT_ONCE)

    def __call__(self, connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
        rest = len(rows) - len(rows) % self.AT_ONCE
        for first in range(0, rest, self.AT_ONCE):
            values = chain.from_iterable(rows[first : first + self.AT_ONCE])
            connection.execute(self._many, tuple(values))
        if rest < len(rows):
            connection.executemany(self._one, rows[rest:])


_insert_messages = _Insert(
    "messages",
    *("tenant", "conversation_id", "position", "created_at", "updated_at", "last_seq", "id", "role", "agent_id"),
    *("content", "status", "reply_to", "model", "tool_calls", "usage", "metadata", "length", "sha256"),
)
# Takes rows of `event_rows`.
insert_events = _Insert("events", "conversation_id", "seq", "tenant", "kind", "message_id", "payload", "at")


def message_rows(append: Append, seq: int, position: int, at: str) -> list[tuple[Any, ...]]:
    """The rows of an append's new messages, of which the first has `position`; `seq` is of its first event."""
    if not append.messages:
        return []
    created = {event.message_id: offset for offset, event in enumerate(append.events)}
    return [
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
    ]


def insert_messages(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    """Rows of `message_rows`. Those that stream have one in `streaming_messages`, too."""
    _insert_messages(connection, rows)
    streaming = [(row[1], row[6], row[0], row[5], row[5]) for row in rows if row[10] == "streaming"]
    if streaming:
        connection.executemany(
            "INSERT INTO streaming_messages (conversation_id, message_id, tenant, created_seq, last_seq, length)"
            " VALUES (?, ?, ?, ?, ?, 0)",
            streaming,
        )


def event_rows(append: Append, seq: int, position: int, at: str) -> list[tuple[Any, ...]]:
    return [
        (
            append.conversation_id,
            seq + offset,
            append.tenant,
            event.kind,
            event.message_id,
            fill(event.payload, seq + offset, position + event.rank).decode(),
            at,
        )
        for offset, event in enumerate(append.events)
    ]


def count_delta(connection: sqlite3.Connection, conversation_id: str, delta: Delta, seq: int) -> None:
    connection.execute(
        "UPDATE streaming_messages SET length = length + ?, last_seq = ? WHERE conversation_id = ? AND message_id = ?",
        (delta.units, seq, conversation_id, delta.message_id),
    )


def change_message(
    connection: sqlite3.Connection, tenant: str, conversation_id: str, change: MessageChange, seq: int, at: str
) -> None:
    if change.tombstone is not None:
        # Before the new event is there: only the earlier ones become tombstones.
        connection.execute(
            "UPDATE events SET kind = 'message.deleted', payload = ? WHERE message_id = ?",
            (change.tombstone, change.message_id),
        )
    streams = change.status == "streaming"
    connection.execute(
        "UPDATE messages SET content = CASE WHEN ? THEN content ELSE ? END, status = ?, model = ?, tool_calls = ?,"
        " usage = ?, metadata = ?, length = ?, sha256 = ?,"
        " updated_at = CASE WHEN ? THEN updated_at ELSE ? END, last_seq = ? WHERE tenant = ? AND id = ?",
        (
            streams,
            change.content,
            change.status,
            change.model,
            change.tool_calls,
            change.usage,
            change.metadata,
            change.length,
            change.sha256,
            streams,
            at,
            seq,
            tenant,
            change.message_id,
        ),
    )
    place = (conversation_id, change.message_id)
    if streams:
        connection.execute(
            "UPDATE streaming_messages SET last_seq = ? WHERE conversation_id = ? AND message_id = ?", (seq, *place)
        )
    else:
        connection.execute("DELETE FROM streaming_messages WHERE conversation_id = ? AND message_id = ?", place)


def change_conversation(
    connection: sqlite3.Connection, conversation_id: str, change: ConversationChange, seq: int, at: str
) -> None:
    connection.execute(
        "UPDATE conversations SET title = ?, metadata = ?, state_seq = ?, updated_at = ?, deleted_at = ? WHERE id = ?",
        (change.title, change.metadata, seq, at, at if change.deleted else None, conversation_id),
    )


def set_run(connection: sqlite3.Connection, tenant: str, conversation_id: str, run: RunState, seq: int) -> None:
    connection.execute(
        _SET_RUN,
        (
            tenant,
            run.id,
            conversation_id,
            run.agent_id,
            run.state,
            run.message_id,
            run.attempt,
            run.error,
            sqlite_time(run.created_at),
            None if run.started_at is None else sqlite_time(run.started_at),
            None if run.ended_at is None else sqlite_time(run.ended_at),
            seq,
        ),
    )


def keep_key(connection: sqlite3.Connection, append: Append, key: WriteKey, seq: int, position: int, at: str) -> None:
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


def keep_deed(connection: sqlite3.Connection, tenant: str, deed: Deed) -> None:
    """Notes in the audit log what the append does."""
    connection.execute(
        "INSERT INTO audit (id, at, tenant, principal, action, subject)"
        " VALUES (:id, :at, :tenant, :principal, :action, :subject)",
        audit_row(tenant, deed, "sqlite"),
    )
