"""An author who writes to one conversation all that a log can hold, and a reader who comes to its state by the log."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from storage.append import Append, Committed, NewEvent, Outcome, RunState, fill
from storage.records import LoggedEvent, Run, StateItem, Status, now, utf16_length
from storage.rows import sqlite_time
from tests.storage.store import TENANT, Store
from tests.storage.streaming import Stream, stream

Json = dict[str, Any]


@dataclass
class Author:
    """Any number of them may write to one conversation. What a method returns is the seq of what it did."""

    store: Store
    conversation: str
    streams: dict[str, Stream] = field(default_factory=dict)
    """The messages that it is streaming."""

    async def begin(self) -> str:
        """The id of a new message, which is streaming."""
        begun = await stream(self.store, self.conversation)
        self.streams[begun.id] = begun
        return begun.id

    async def say(self, message_id: str, text: str) -> int:
        return _seq(await self.streams[message_id].add(text))

    async def call_tool(self, message_id: str, call: Json) -> int:
        return _seq(await self.streams[message_id].call(call))

    async def finish(self, message_id: str, status: Status = "complete") -> int:
        return _seq(await self.streams.pop(message_id).finish(status=status))

    async def set_run(self, run: RunState) -> int:
        """A run as it is from now on."""
        append = Append(
            TENANT,
            self.conversation,
            now(),
            events=[run_event(self.conversation, run)],
            answer=b"",
            status=200,
            run=run,
        )
        return _seq(await self.store.commits.submit(append))


def run_event(conversation: str, run: RunState) -> NewEvent:
    record = Run(conversation_id=conversation, **msgspec.structs.asdict(run))
    return NewEvent(f"run.{run.state}", None, b'{"run":%b}' % msgspec.json.encode(record))


def _seq(outcome: Outcome) -> int:
    assert isinstance(outcome, Committed), outcome
    return outcome.seq


def logged(append: Append, seq: int, position: int) -> list[LoggedEvent]:
    """The events of an append as the log got them."""
    return [
        LoggedEvent(number, event.kind, fill(event.payload, number, position + event.rank))
        for number, event in enumerate(append.events, seq)
    ]


def state_by_the_log(events: Iterable[LoggedEvent], after: int = 0) -> list[tuple[int, Json]]:
    """What a reader of all these events holds: each thing that was touched after seq `after`, with the seq that did."""
    held: dict[str, tuple[int, Json]] = {}
    for event in events:
        payload = json.loads(event.payload)
        match event.kind:
            case "message.delta":
                _, message = held[payload["message_id"]]
                assert payload["offset"] == utf16_length(message["content"])
                held[message["id"]] = (event.seq, message | {"content": message["content"] + payload["text"]})
            case "tool.called":
                _, message = held[payload["message_id"]]
                calls = [*message["tool_calls"], payload["tool_call"]]
                held[message["id"]] = (event.seq, message | {"tool_calls": calls})
            case "conversation.updated":
                conversation = payload["conversation"]
                held[conversation["id"]] = (event.seq, _essence(conversation))
            case _:
                [record] = payload.values()
                held[record["id"]] = (event.seq, _essence(record))
    return sorted((touched for touched in held.values() if touched[0] > after), key=lambda touched: touched[0])


def shown_items(items: Iterable[StateItem]) -> list[tuple[int, Json]]:
    """The same, of a state that was read."""
    return [(item.seq, _essence(json.loads(msgspec.json.encode(item.record)))) for item in items]


def _essence(record: Json) -> Json:
    """A record without the fields that its own events cannot know."""
    passing = {"updated_at", "as_of", "message_count", "last_activity_at"}
    return {name: value for name, value in record.items() if name not in passing}


async def set_age(store: Store, conversation: str, at: datetime | None, *, first: int, last: int) -> None:
    """Makes the events from `first` to `last` of that time, or of an unknown one."""
    time = (
        "NULL" if at is None else f"'{at.isoformat() if store.database.dialect == 'postgresql' else sqlite_time(at)}'"
    )
    which = f"conversation_id = '{conversation}' AND seq BETWEEN {first} AND {last}"
    await store.execute(f"UPDATE events SET at = {time} WHERE {which}")
