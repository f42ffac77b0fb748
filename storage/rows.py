"""Rows as records."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import repeat
from typing import Any

import msgspec
from msgspec import Raw
from sqlalchemy import ColumnElement, func

from storage.content import CONTENT
from storage.records import Conversation, Message, Run
from storage.tables import conversations, messages, runs
from storage.wire_time import WireTime

_encode = msgspec.json.Encoder().encode

_m = messages.c
MESSAGE_COLUMNS: list[ColumnElement[Any]] = [
    _m.id,
    _m.conversation_id,
    _m.position,
    _m.role,
    _m.agent_id,
    _m.run_id,
    CONTENT,
    _m.status,
    _m.reply_to,
    _m.model,
    _m.tool_calls,
    _m.usage,
    _m.metadata,
    _m.length,
    _m.sha256,
    _m.created_at,
    _m.updated_at,
]

# The same without what all rows of one conversation share, times as text, and null for a second one that is the first:
# to make a value of what comes from the database costs more than to send it, and a window has hundreds of values.
WINDOW_COLUMNS: list[ColumnElement[Any]] = [
    _m.id,
    *MESSAGE_COLUMNS[2:-2],
    WireTime(_m.created_at),
    WireTime(func.nullif(_m.updated_at, _m.created_at)),
]

_c = conversations.c
CONVERSATION_COLUMNS: list[ColumnElement[Any]] = [
    _c.id,
    _c.title,
    _c.metadata,
    _c.message_count,
    _c.last_seq,
    _c.created_at,
    _c.updated_at,
    _c.last_activity_at,
]

_r = runs.c
RUN_COLUMNS: list[ColumnElement[Any]] = [
    _r.id,
    _r.conversation_id,
    _r.agent_id,
    _r.state,
    _r.message_id,
    _r.attempt,
    _r.error,
    _r.created_at,
    _r.started_at,
    _r.ended_at,
]


def message(row: Sequence[Any]) -> Message:
    """A row that begins with `MESSAGE_COLUMNS`."""
    return Message(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
        Raw(row[10]),
        None if row[11] is None else Raw(row[11]),
        Raw(row[12]),
        row[13],
        row[14],
        from_time(row[15]),
        from_time(row[16]),
    )


def encoded_messages(conversation_id: str, rows: Sequence[Sequence[Any]]) -> bytes:
    """The JSON array of rows of one conversation that begin with `WINDOW_COLUMNS`: of each what `message` makes of it.

    It goes column by column, and times stay text: both are cheaper.
    """
    columns = list(zip(*rows, strict=True))
    tool_calls, usage, metadata, length, sha256, created_at, updated_at = columns[9:16]
    created = [_encoded_time(time) for time in created_at]
    return _encode(
        list(
            map(
                Message,
                columns[0],
                repeat(conversation_id),
                *columns[1:9],
                map(Raw, tool_calls),
                [None if value is None else Raw(value) for value in usage],
                map(Raw, metadata),
                length,
                sha256,
                created,
                [_encoded_time(time) if time else then for then, time in zip(created, updated_at, strict=True)],
            )
        )
    )


def _encoded_time(time: str) -> str:
    """As msgspec encodes it: a fraction of a second that is nothing is not written."""
    return time.replace(".000000Z", "Z")


def conversation(row: Sequence[Any]) -> Conversation:
    """A row that begins with `CONVERSATION_COLUMNS`."""
    return Conversation(
        row[0], row[1], Raw(row[2]), row[3], row[4], from_time(row[5]), from_time(row[6]), from_time(row[7])
    )


def run(row: Sequence[Any]) -> Run:
    """A row that begins with `RUN_COLUMNS`."""
    return Run(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        row[6],
        from_time(row[7]),
        None if row[8] is None else from_time(row[8]),
        None if row[9] is None else from_time(row[9]),
    )


def from_time(value: datetime | str) -> datetime:
    """A time as the driver gives it: SQLite's are text."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def to_time(value: datetime, dialect: str) -> datetime | str:
    """A time as the driver takes it."""
    return sqlite_time(value) if dialect == "sqlite" else value


def sqlite_time(value: datetime) -> str:
    """A time as SQLite's tables hold it: always with six decimals, so that times sort as text."""
    return value.astimezone(UTC).isoformat(timespec="microseconds")[: -len("+00:00")] + "Z"
