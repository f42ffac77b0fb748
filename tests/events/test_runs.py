"""What agents leave in the log while they answer."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from events.appending import Appending
from events.conversation_log import Draft
from events.errors import NotStreaming
from events.runs import Runs, ToolCall
from events.streamed_messages import StreamedMessages
from storage.errors import NotFound
from storage.records import Run, RunStatus, new_id, now
from tests.storage.store import TENANT, Store, opened


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with opened(database_url) as store:
        yield store


def _runs(store: Store) -> tuple[Runs, StreamedMessages]:
    appending = Appending(store.database, store.commits)
    return Runs(store.database, appending), StreamedMessages(store.database, appending)


async def _message(store: Store, conversation_id: str, **fields: Any) -> str:
    draft = Draft("agent", "", agent_id="general_01", status="streaming", **fields)
    answer = await store.writes.post(TENANT, conversation_id, [draft], many=False, key=None)
    return str(json.loads(answer.body)["id"])


def _run(conversation_id: str, state: RunStatus, **fields: Any) -> Run:
    given = {"id": new_id(), "message_id": None, "error": None, "started_at": now(), "ended_at": None, **fields}
    return Run(
        conversation_id=conversation_id, agent_id="general_01", state=state, attempt=1, created_at=now(), **given
    )


@pytest.mark.parametrize(("end", "kind"), [("succeeded", "finished"), ("failed", "failed"), ("cancelled", "cancelled")])
async def test_each_state_of_a_run_is_an_event_with_the_whole_run(store: Store, end: RunStatus, kind: str) -> None:
    conversation_id = await store.conversation()
    runs, _ = _runs(store)
    running = _run(conversation_id, "running")
    ended = _run(conversation_id, end, id=running.id, ended_at=now(), error="no" if end == "failed" else None)
    for run in (running, ended):
        await runs.record(TENANT, run)
    events = await store.events(conversation_id)
    assert [event.kind for event in events] == ["run.started", f"run.{kind}"]
    assert json.loads(events[1].payload)["run"]["error"] == ended.error
    state = await store.log.state(TENANT, conversation_id, 0, limit=10, budget=10_000)
    assert [(item.seq, item.record.id) for item in state.items if isinstance(item.record, Run)] == [(2, running.id)]
    [record] = [item.record for item in state.items if isinstance(item.record, Run)]
    assert (record.state, record.error, record.attempt) == (end, ended.error, 1)


async def test_a_run_of_no_conversation_is_not_found(store: Store) -> None:
    runs, _ = _runs(store)
    with pytest.raises(NotFound):
        await runs.record(TENANT, _run(new_id(), "running"))
    with pytest.raises(NotFound):
        await runs.record("another", _run(await store.conversation(), "running"))


async def test_a_call_of_a_tool_is_in_its_message_from_its_event_on(store: Store) -> None:
    conversation_id = await store.conversation()
    runs, streamed = _runs(store)
    message_id = await _message(store, conversation_id)
    await streamed.append_delta(TENANT, message_id, 0, "let me look: ")
    first, second = ToolCall("a", "find", arguments={"q": "\x01\r\n\u2028 data: x"}), ToolCall("b", "read")
    for call in (first, second):
        await runs.tool_called(TENANT, message_id, call)
    await streamed.append_delta(TENANT, message_id, 13, "found")
    returned = ToolCall("a", "find", arguments=first.arguments, result=[1, {"x": "é"}], is_error=True, ended_at=now())
    await runs.tool_returned(TENANT, message_id, returned)
    message = await store.messages.get(TENANT, message_id)
    assert (message.status, message.content) == ("streaming", "let me look: found")
    calls = json.loads(bytes(message.tool_calls))
    assert [(call["id"], call["is_error"], call["result"]) for call in calls] == [
        ("a", True, [1, {"x": "é"}]),
        ("b", False, None),
    ]
    await streamed.finish(TENANT, message_id, "complete")
    finished = await store.messages.get(TENANT, message_id)
    assert json.loads(bytes(finished.tool_calls)) == calls
    events = await store.events(conversation_id)
    assert [event.kind for event in events] == [
        "message.created",
        "message.delta",
        "tool.called",
        "tool.called",
        "message.delta",
        "tool.returned",
        "message.completed",
    ]
    told = json.loads(events[5].payload)
    assert told == {"run_id": None, "message_id": message_id, "tool_call": calls[0]}


async def test_a_message_that_has_ended_calls_no_tool(store: Store) -> None:
    conversation_id = await store.conversation()
    runs, streamed = _runs(store)
    message_id = await _message(store, conversation_id)
    await streamed.finish(TENANT, message_id, "cancelled")
    with pytest.raises(NotStreaming):
        await runs.tool_called(TENANT, message_id, ToolCall("a", "find"))
    with pytest.raises(NotFound):
        await runs.tool_returned(TENANT, new_id(), ToolCall("a", "find"))
    assert len(await store.events(conversation_id)) == 2
