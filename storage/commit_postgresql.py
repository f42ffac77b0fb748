"""The group commit on PostgreSQL: one call of a function, one round trip, one flushed commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from storage.append import (
    Again,
    Append,
    Busy,
    Committed,
    Moved,
    NewMessage,
    Outcome,
    Refused,
    Seen,
    Stale,
)
from storage.audit import audit_row
from storage.database import Database

# Of ids: they are given as text, which the driver encodes itself. For a UUID it would ask Python, at each one.
_IDS = (2, 11, 16, 27)
_PARAMETERS = ", ".join(f"${number}::text[]::uuid[]" if number in _IDS else f"${number}" for number in range(1, 30))
_CALL = f"SELECT verdict, seq, position, epoch, detail::text FROM commit_group_3({_PARAMETERS})"  # noqa: S608 (a constant)
# The same with the audit rows of what it has done: still one statement, for a second one would be a second round trip.
_CALL_WITH_DEEDS = (
    "WITH done AS MATERIALIZED (SELECT verdict, seq, position, epoch, detail::text AS detail, number"  # noqa: S608 (constants)
    f" FROM commit_group_3({_PARAMETERS}) WITH ORDINALITY"
    " AS of (verdict, seq, position, detail, epoch, number)),"
    " noted AS (INSERT INTO audit (id, at, tenant, principal, action, subject)"
    " SELECT d.id, d.at, d.tenant, d.principal, d.action, d.subject FROM unnest($30::bigint[], $31::uuid[],"
    " $32::timestamptz[], $33::text[], $34::text[], $35::text[], $36::text[])"
    " AS d (number, id, at, tenant, principal, action, subject)"
    " JOIN done ON done.number = d.number WHERE done.verdict IS NULL)"
    " SELECT verdict, seq, position, epoch, detail FROM done ORDER BY number"
)
_MESSAGE_COLUMNS = ("append", "rank", "event", *NewMessage.__struct_fields__)
_EVENT_COLUMNS = ("append", "rank", "offset", "kind", "message_id", "payload")
# Those that the function takes as one value, where all rows have the same.
_SHARED = frozenset(
    {
        "append",
        "rank",
        "event",
        "offset",
        "kind",
        "role",
        "agent_id",
        "status",
        "model",
        "tool_calls",
        "usage",
        "metadata",
    }
)


class PostgresqlCommitter:
    """Commits groups. Several groups may be in flight at once, of different conversations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def commit(self, group: Sequence[Append], *, patient: bool) -> list[Outcome]:
        """The outcome of each append of the group, in order.

        An impatient group passes over conversations that another transaction holds (`Busy`); a patient one waits for
        them, for the lock timeout at most. Raises storage's errors, and the drivers' where they mean a defect.
        """
        arguments = _arguments(group, patient=patient)
        call = _CALL
        if any(append.deed is not None for append in group):
            call = _CALL_WITH_DEEDS
            arguments += _deeds(group)
        async with self._database.operation("log.commit"), self._database.driver() as driver:
            if self._database.config.pgbouncer:
                async with driver.transaction():
                    rows = await driver.fetch(call, *arguments)
            else:
                rows = await driver.fetch(call, *arguments)
        return [_outcome(*row) for row in rows]

    async def close(self) -> None:
        """Nothing is held between commits."""


def _deeds(group: Sequence[Append]) -> list[list[Any]]:
    """The columns of the audit rows, with the number of each one's append before them."""
    rows = [
        (number, *audit_row(append.tenant, append.deed, "postgresql").values())
        for number, append in enumerate(group, 1)
        if append.deed is not None
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def _arguments(group: Sequence[Append], *, patient: bool) -> list[Any]:
    conversations = sorted({append.conversation_id: append.tenant for append in group}.items())
    ordinals = {conversation_id: index for index, (conversation_id, _) in enumerate(conversations, 1)}
    messages: list[tuple[Any, ...]] = []
    events: list[tuple[Any, ...]] = []
    for number, append in enumerate(group, 1):
        created = {
            event.message_id: offset for offset, event in enumerate(append.events) if event.message_id is not None
        }
        messages.extend(
            (number, rank, created[message.id], *msgspec.structs.astuple(message))
            for rank, message in enumerate(append.messages)
        )
        events.extend(
            (number, event.rank, offset, event.kind, event.message_id, event.payload.decode())
            for offset, event in enumerate(append.events)
        )
    return [
        patient,
        [conversation_id for conversation_id, _ in conversations],
        [tenant for _, tenant in conversations],
        [ordinals[append.conversation_id] for append in group],
        [len(append.events) for append in group],
        [len(append.messages) for append in group],
        [append.at for append in group],
        *_tables(messages, events),
        _extras(group),
    ]


def _tables(messages: list[tuple[Any, ...]], events: list[tuple[Any, ...]]) -> list[list[Any]]:
    """The rows of messages and of events by column, without what the function knows otherwise."""
    of_messages, of_events = _columns(messages, _MESSAGE_COLUMNS), _columns(events, _EVENT_COLUMNS)
    if of_messages["event"] == of_messages["rank"]:
        of_messages["event"] = []
    if of_events["rank"] == of_events["offset"]:
        of_events["rank"] = []
    if of_events["message_id"] == of_messages["id"]:
        of_events["message_id"] = []
    return [*of_messages.values(), *of_events.values()]


def _columns(rows: list[tuple[Any, ...]], names: Sequence[str]) -> dict[str, list[Any]]:
    """The rows by column. One of nothing but nulls is empty; one that may be shared, and is, is its one value: encoding
    all values of all columns was a quarter of an import's time."""
    if not rows:
        return {name: [] for name in names}
    columns: dict[str, list[Any]] = {}
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        first = values[0]
        if (first is None or name in _SHARED) and values.count(first) == len(values):
            columns[name] = [] if first is None else [first]
        else:
            columns[name] = list(values)
    return columns


def _extras(group: Sequence[Append]) -> str | None:
    """What most appends do not have, as the JSON that the function takes; None when none has any."""
    keys: list[dict[str, Any]] = []
    agents: list[dict[str, Any]] = []
    replies: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    deltas: list[dict[str, Any]] = []
    conversations: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for number, append in enumerate(group, 1):
        if append.key is not None:
            progress = append.progress
            keys.append(
                {
                    "append": number,
                    "tenant": append.tenant,
                    **msgspec.structs.asdict(append.key),
                    "lines_before": progress and progress.lines_before,
                    "lines": progress and progress.lines,
                    "running_hash": progress and progress.running_hash,
                    "status": append.status,
                    "answer": "" if progress else append.answer.decode(),
                }
            )
        agents.extend(
            {"append": number, "agent_id": agent_id, "shipped": agent_id in append.shipped_agents}
            for agent_id in append.agent_ids
        )
        replies.extend({"append": number, "message_id": message_id} for message_id in append.reply_ids)
        if append.change is not None:
            changes.append({"append": number, **msgspec.structs.asdict(append.change)})
        if append.delta is not None:
            deltas.append({"append": number, **msgspec.structs.asdict(append.delta)})
        if append.conversation is not None:
            conversations.append({"append": number, **msgspec.structs.asdict(append.conversation)})
        if append.run is not None:
            runs.append({"append": number, **msgspec.structs.asdict(append.run)})
    # Locks are taken in one order everywhere.
    keys.sort(key=lambda key: (key["tenant"], key["principal"], key["route"], key["key"]))
    extras = {
        "keys": keys,
        "agents": agents,
        "replies": replies,
        "changes": changes,
        "deltas": deltas,
        "conversations": conversations,
        "runs": runs,
    }
    present = {name: rows for name, rows in extras.items() if rows}
    return msgspec.json.encode(present).decode() if present else None


def _outcome(verdict: str | None, seq: int | None, position: int | None, epoch: str, detail: str | None) -> Outcome:
    if verdict is None:
        assert seq is not None
        assert position is not None
        return Committed(seq, position, epoch)
    match verdict:
        case "busy":
            return Busy()
        case "again":
            return Again()
        case "stale":
            return Stale()
        case "seen":
            found = msgspec.json.decode(detail or "")
            return Seen(found["status"], found["answer"].encode(), found["seq"], found["position"])
        case "moved":
            return msgspec.json.decode(detail or "", type=Moved)
        case _:
            return Refused(verdict, msgspec.json.decode(detail) if detail else "")
