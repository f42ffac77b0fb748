"""What agents leave in the log while they answer: the states of their runs, and the tools that they call."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct

from events import vocabulary
from events.appending import Appending, message_change, refusal
from events.errors import NotStreaming
from storage.append import Append, Committed, RunState
from storage.database import Database
from storage.idempotency import Answer
from storage.messages import Messages
from storage.records import Run, now


class ToolCall(Struct, frozen=True):
    """A call of a tool, as its message keeps it: known by its `id`, without `result` until it returns."""

    id: str
    name: str
    server: str | None = None
    arguments: dict[str, Any] = {}
    result: Any = None
    is_error: bool = False
    started_at: datetime | None = None
    ended_at: datetime | None = None


class _Identified(Struct, frozen=True):
    id: str


class Runs:
    """What has been recorded is durable, and on its way to every reader."""

    def __init__(self, database: Database, appending: Appending) -> None:
        self._appending = appending
        self._messages = Messages(database)

    async def record(self, tenant: str, run: Run) -> None:
        """The run is what `run` says from now on; its state is not `queued`. Raises `NotFound`."""
        append = Append(
            tenant,
            run.conversation_id,
            now(),
            events=[vocabulary.run_event(run)],
            answer=b"",
            status=204,
            run=RunState(
                id=run.id,
                agent_id=run.agent_id,
                state=run.state,
                message_id=run.message_id,
                attempt=run.attempt,
                error=run.error,
                created_at=run.created_at,
                started_at=run.started_at,
                ended_at=run.ended_at,
            ),
        )
        outcome = await self._appending.submit(append)
        if not isinstance(outcome, Committed):
            raise refusal(outcome)

    async def tool_called(self, tenant: str, message_id: str, tool_call: ToolCall) -> None:
        """A tool was called for a streaming message. Raises `NotFound` and `NotStreaming`."""
        await self._tell(tenant, message_id, tool_call, vocabulary.TOOL_CALLED)

    async def tool_returned(self, tenant: str, message_id: str, tool_call: ToolCall) -> None:
        """It returned: the call of the same id takes the place of the one before. Raises as `tool_called` does."""
        await self._tell(tenant, message_id, tool_call, vocabulary.TOOL_RETURNED)

    async def _tell(self, tenant: str, message_id: str, tool_call: ToolCall, kind: str) -> None:
        encoded = msgspec.json.encode(tool_call)

        async def read() -> Append | Answer:
            found = await self._messages.get_versioned(tenant, message_id)
            before = found.message
            if before.status != "streaming":
                raise NotStreaming(before.status)
            after = msgspec.structs.replace(before, tool_calls=_with(before.tool_calls, tool_call.id, encoded))
            return Append(
                tenant,
                after.conversation_id,
                now(),
                events=[vocabulary.tool_event(kind, after.run_id, message_id, encoded)],
                answer=b"",
                status=204,
                change=message_change(after, found.last_seq),
            )

        with self._appending.precedence.of_change(message_id):
            await self._appending.until_not_stale(tenant, None, read)


def _with(tool_calls: Raw, identifier: str, encoded: bytes) -> Raw:
    """The calls with this one: in the place of the one that has its id, else behind the others."""
    calls = msgspec.json.decode(tool_calls, type=list[Raw])
    for place, call in enumerate(calls):
        if msgspec.json.decode(call, type=_Identified).id == identifier:
            calls[place] = Raw(encoded)
            break
    else:
        calls.append(Raw(encoded))
    return Raw(msgspec.json.encode(calls))
