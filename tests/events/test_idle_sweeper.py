"""Messages whose writers have died, and those whose writers have not."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text

from events.appending import Appending
from events.conversation_log import Draft
from events.idle_sweeper import IdleSweeper
from events.runs import Runs, ToolCall
from events.streamed_messages import StreamedMessages
from storage.config import CommitConfig
from storage.errors import StorageUnavailable
from storage.streaming import StreamingMessage, StreamingMessages
from tests.storage.store import TENANT, TIMEOUT, Store, opened, until

IDLE = 300.0


@dataclass
class Process:
    """A process that sweeps, and its clock."""

    store: Store
    streamed: StreamedMessages
    runs: Runs
    sweeper: IdleSweeper
    now: float = 0.0

    async def sweep(self, later: float = 0.0) -> None:
        self.now += later
        async with asyncio.timeout(TIMEOUT):
            await self.sweeper.sweep()

    async def opened(self, conversation_id: str) -> str:
        """The id of a message that streams."""
        draft = Draft("user", "", status="streaming")
        answer = await self.store.writes.post(TENANT, conversation_id, [draft], many=False, key=None)
        return str(json.loads(answer.body)["id"])

    async def append(self, message_id: str, offset: int, text: str) -> int:
        answer = await self.streamed.append_delta(TENANT, message_id, offset, text)
        return int(json.loads(answer.body)["length"])

    async def read(self, message_id: str) -> tuple[str, str, int | None]:
        found = await self.store.messages.get(TENANT, message_id)
        return found.status, found.content, found.length


def _process(store: Store) -> Process:
    appending = Appending(store.database, store.commits)
    streamed = StreamedMessages(store.database, appending)
    sweeper = IdleSweeper(StreamingMessages(store.database), streamed, IDLE, lambda: made.now)
    made = Process(store, streamed, Runs(store.database, appending), sweeper)
    return made


@pytest.fixture
async def process(database_url: str) -> AsyncIterator[Process]:
    async with opened(database_url) as store:
        yield _process(store)


async def test_a_message_that_stands_still_for_long_enough_fails_and_keeps_its_text(process: Process) -> None:
    conversation_id = await process.store.conversation()
    message_id = await process.opened(conversation_id)
    await process.append(message_id, 0, "half a senten")
    await process.sweep()
    await process.sweep(IDLE - 1)
    assert (await process.read(message_id))[0] == "streaming"
    await process.sweep(1)
    assert await process.read(message_id) == ("failed", "half a senten", 13)
    events = await process.store.events(conversation_id)
    assert [event.kind for event in events] == ["message.created", "message.delta", "message.failed"]
    assert json.loads(events[-1].payload)["message"]["content"] == "half a senten"
    await process.sweep(IDLE)
    assert len(await process.store.events(conversation_id)) == 3


@pytest.mark.parametrize("sign", ["delta", "tool"])
async def test_any_sign_of_life_counts(process: Process, sign: str) -> None:
    message_id = await process.opened(await process.store.conversation())
    for n in range(4):
        if sign == "delta":
            await process.append(message_id, n, "x")
        else:
            await process.runs.tool_called(TENANT, message_id, ToolCall(f"c{n}", "find"))
        await process.sweep(IDLE / 2)
    assert (await process.read(message_id))[0] == "streaming"
    await process.sweep(IDLE)
    assert (await process.read(message_id))[0] == "failed"


async def test_what_was_before_the_process_does_not_count(process: Process) -> None:
    """However old the message is: nobody knows how long this process's clock has not run."""
    message_id = await process.opened(await process.store.conversation())
    await process.sweep(IDLE * 10)
    assert (await process.read(message_id))[0] == "streaming"


async def test_time_in_which_the_database_was_away_does_not_count(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id = await process.opened(await process.store.conversation())
    looks = 0
    look = process.sweeper._streaming.all

    async def away_once() -> list[StreamingMessage]:
        nonlocal looks
        looks += 1
        process.now += IDLE  # between any two looks, as the sweeper's clock has it
        if looks == 2:
            raise StorageUnavailable("away")
        return await look() if looks < 5 else []

    async def failed(*arguments: Any) -> bool:
        failures.append(looks)
        return True

    failures: list[int] = []
    monkeypatch.setattr(process.sweeper._streaming, "all", away_once)
    monkeypatch.setattr(process.streamed, "fail_idle", failed)
    monkeypatch.setattr("events.idle_sweeper._MOST", 0.001)
    await process.sweeper.start()
    await until(lambda: looks >= 5)
    await process.sweeper.close()
    assert failures == [4]  # not the third look, the first one after
    assert (await process.read(message_id))[0] == "streaming"


async def test_a_delta_that_comes_while_the_sweeper_decides_wins(process: Process) -> None:
    """The sweeper has read the message when the delta is committed, and writes after it."""
    conversation_id = await process.store.conversation()
    message_id = await process.opened(conversation_id)
    await process.append(message_id, 0, "a")
    await process.sweep()
    gate = process.store.gate
    gate.hold()
    groups = len(gate.groups)
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        delta = group.create_task(process.append(message_id, 1, "b"))
        await gate.arrived(groups + 1)
        sweep = group.create_task(process.sweep(IDLE))
        await until(lambda: process.store.waiting == 1)  # what ends it waits behind the delta
        gate.release()
        await sweep
    assert delta.result() == 2
    assert await process.read(message_id) == ("streaming", "ab", None)
    kinds = [event.kind for event in await process.store.events(conversation_id)]
    assert kinds == ["message.created", "message.delta", "message.delta"]


async def test_a_delta_that_comes_after_the_sweeper_is_refused_with_what_is_there(process: Process) -> None:
    conversation_id = await process.store.conversation()
    message_id = await process.opened(conversation_id)
    await process.append(message_id, 0, "a")
    await process.sweep()
    gate = process.store.gate
    gate.hold()
    groups = len(gate.groups)
    async with asyncio.timeout(TIMEOUT):
        sweep = asyncio.create_task(process.sweep(IDLE))
        await gate.arrived(groups + 1)
        delta = asyncio.create_task(process.append(message_id, 1, "b"))
        await until(lambda: process.store.waiting == 1)
        gate.release()
        await sweep
        with pytest.raises(Exception, match="failed and has 1 UTF-16") as refused:
            await delta
    assert type(refused.value).__name__ == "DeltaRefused"
    assert await process.read(message_id) == ("failed", "a", 1)


async def test_many_processes_sweep_and_a_message_fails_once(process: Process) -> None:
    conversation_id = await process.store.conversation()
    message_ids = [await process.opened(conversation_id) for _ in range(5)]
    processes = [process, *(_process(process.store) for _ in range(3))]
    for later in (0.0, IDLE):
        await asyncio.gather(*(one.sweep(later) for one in processes))
    for message_id in message_ids:
        assert (await process.read(message_id))[0] == "failed"
    kinds = [event.kind for event in await process.store.events(conversation_id)]
    assert kinds == ["message.created"] * 5 + ["message.failed"] * 5
    await process.store.check(conversation_id)


async def test_messages_of_a_deleted_conversation_are_left_alone(process: Process) -> None:
    conversation_id = await process.store.conversation()
    message_id = await process.opened(conversation_id)
    [standing] = await process.sweeper._streaming.all()
    await process.store.writes.delete_conversation(TENANT, conversation_id, key=None)
    assert await process.sweeper._streaming.all() == []
    assert not await process.streamed.fail_idle(TENANT, message_id, standing.last_seq)


async def test_a_conversation_that_is_locked_keeps_no_other_message_streaming(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By somebody who left a transaction open, such as an operator. Its messages are waited for once."""
    async with opened(postgresql_url, commit=CommitConfig(queue_seconds=1.0)) as store:
        process = _process(store)
        conversations = [await store.conversation() for _ in range(3)]
        messages = [await process.opened(conversation) for conversation in conversations]
        for _ in range(5):
            await process.opened(conversations[1])
        tried: list[str] = []
        fail_idle = process.streamed.fail_idle

        async def counted(tenant: str, message_id: str, last_seq: int) -> bool:
            tried.append(message_id)
            return await fail_idle(tenant, message_id, last_seq)

        monkeypatch.setattr(process.streamed, "fail_idle", counted)
        await process.sweep()
        async with store.database.transaction("lock") as connection:
            await connection.execute(
                text("SELECT id FROM conversations WHERE id = CAST(:id AS uuid) FOR UPDATE"), {"id": conversations[1]}
            )
            await process.sweep(IDLE)
            states = [(await process.read(message))[0] for message in messages]
        assert states == ["failed", "streaming", "failed"]
        assert len(tried) == 3
