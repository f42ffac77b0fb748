"""Runs, as the log's appends leave them."""

import asyncio
from datetime import timedelta

import msgspec
from sqlalchemy import select

from storage.append import Committed, Refused
from storage.records import Run, new_id, now
from storage.rows import RUN_COLUMNS, run
from storage.statement import Statement
from storage.tables import runs
from tests.storage.store import Store, bounded, opened, until
from tests.storage.streaming import new_run, run_append, stream

_RUNS = Statement("test.runs", select(*RUN_COLUMNS, runs.c.tenant, runs.c.last_seq).order_by(runs.c.created_at))


async def _runs(store: Store) -> list[tuple[Run, int]]:
    return [(run(row), row[-1]) for row in await store.database.fetch(_RUNS)]


async def test_a_run_is_as_its_latest_append_says(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    first = new_run()
    second = new_run(agent_id="coding_01", created_at=first.created_at + timedelta(seconds=1))
    for state in (first, second):
        assert isinstance(await store.commits.submit(run_append(conversation, state)), Committed)
    expected = [Run(conversation_id=conversation, **msgspec.structs.asdict(state)) for state in (first, second)]
    assert await _runs(store) == [(expected[0], 2), (expected[1], 3)]
    failed = msgspec.structs.replace(
        first,
        state="failed",
        message_id=message.id,
        attempt=2,
        error='it said "no" 😀',
        started_at=now(),
        ended_at=now() + timedelta(seconds=2),
    )
    assert isinstance(await store.commits.submit(run_append(conversation, failed)), Committed)
    expected[0] = Run(conversation_id=conversation, **msgspec.structs.asdict(failed))
    assert await _runs(store) == [(expected[0], 4), (expected[1], 3)]
    queued_again = msgspec.structs.replace(first, attempt=3)
    await store.commits.submit(run_append(conversation, queued_again))
    assert (await _runs(store))[0] == (Run(conversation_id=conversation, **msgspec.structs.asdict(queued_again)), 5)


async def test_a_run_in_an_append_that_is_refused_is_not_there(store: Store) -> None:
    assert await store.commits.submit(run_append(new_id(), new_run())) == Refused("missing")
    assert await _runs(store) == []


async def test_states_of_one_run_that_wait_together_come_one_after_the_other(database_url: str) -> None:
    async with opened(database_url, committers=1) as store:
        conversation, plug = await store.conversation(), await store.conversation()
        store.gate.hold()
        plugged = asyncio.create_task(store.post(plug, "keeps the only committer busy"))
        await store.gate.arrived()
        states = [new_run(id=new_id(), created_at=now()) for _ in range(2)]
        appends = [
            run_append(conversation, msgspec.structs.replace(state, state=name))
            for name in ("queued", "running", "succeeded")
            for state in states
        ]
        commits = [asyncio.create_task(store.commits.submit(append)) for append in appends]
        await until(lambda: store.waiting == len(appends))
        store.gate.release()
        await bounded(plugged)
        assert all(isinstance(outcome, Committed) for outcome in await bounded(*commits))
        assert [(found.state, seq) for found, seq in await _runs(store)] == [("succeeded", 5), ("succeeded", 6)]
        assert [len(group) for group in store.gate.groups] == [1, 2, 2, 2]
