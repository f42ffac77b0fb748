"""`kill -9` of the whole server, under writers and a reader: acknowledged is durable, and nothing is issued twice."""

import asyncio
import random
import signal
from typing import Any

import aiohttp
import pytest

from tests import proof
from tests.server_process import ServerProcess
from tests.sse_reader import SseReader, StreamEnded

WRITERS = 4
_AWAY = (aiohttp.ClientError, ConnectionError, TimeoutError, asyncio.IncompleteReadError)


async def _write(
    session: aiohttp.ClientSession, path: str, name: int, acknowledged: dict[str, Any], stop: asyncio.Event
) -> None:
    count = 0
    while not stop.is_set():
        count += 1
        texts = [f"{name}/{count}/{n}" for n in range(random.choice([1, 1, 5]))]
        body: Any = [{"role": "user", "content": text} for text in texts]
        try:
            async with session.post(path, json=body) as answer:
                if answer.status == 201:
                    for item in (await answer.json())["items"]:
                        acknowledged[item["id"]] = item
        except _AWAY:
            await asyncio.sleep(0.02)  # it is being started again


async def _follow(port: int, target: str, events: dict[int, str], until: asyncio.Future[int]) -> None:
    """Reads as an `EventSource` does: cut, it comes back with the last id."""
    last = ""
    while not until.done() or max(events, default=0) < until.result():
        try:
            headers = {"Last-Event-ID": last} if last else {}
            async with SseReader("127.0.0.1", port, target, headers) as reader:
                while not until.done() or max(events, default=0) < until.result():
                    frame = await reader.event(1.0)
                    assert frame.event != "reset"
                    last = frame.id or last
                    if frame.event == "message.created":
                        seq = frame.json["seq"]
                        assert seq not in events, "seen twice"
                        assert seq == max(events, default=0) + 1, "a gap"
                        events[seq] = frame.data
        except (StreamEnded, *_AWAY):
            await asyncio.sleep(0.02)


@pytest.mark.proof
@pytest.mark.timeout(1_800)
async def test_what_was_acknowledged_survives_a_killed_server_and_no_seq_is_issued_twice(database_url: str) -> None:
    server = ServerProcess(database_url)
    await server.start()
    kills = proof.count(5, 100)
    acknowledged: dict[str, Any] = {}
    events: dict[int, str] = {}
    stop = asyncio.Event()
    until: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with aiohttp.ClientSession(server.origin) as session:
        async with session.post("/api/conversations", json={}) as answer:
            conversation = f"/api/conversations/{(await answer.json())['id']}"
        async with asyncio.TaskGroup() as tasks:
            path = f"{conversation}/messages"
            writers = [tasks.create_task(_write(session, path, name, acknowledged, stop)) for name in range(WRITERS)]
            tasks.create_task(_follow(server.port, f"{conversation}/events?after=0", events, until))
            for _ in range(kills):
                await asyncio.sleep(random.uniform(0.05, 0.4))  # the load goes on for a while
                await server.end(signal.SIGKILL)
                await server.start()
            stop.set()
            await asyncio.wait(writers)
            async with session.get(f"{path}?limit=1") as answer:
                window = await answer.json()
            until.set_result(window["as_of"])
        stored: dict[str, Any] = {}
        after: int | None = 0
        while after is not None:
            async with session.get(f"{path}?after={after}&limit=500") as answer:
                window = await answer.json()
            stored |= {item["id"]: item for item in window["items"]}
            after = window["next"]
    assert await server.end(signal.SIGTERM) == 0
    assert {name: stored.get(name) for name in acknowledged} == acknowledged
    assert [item["position"] for item in stored.values()] == list(range(1, len(stored) + 1))
    assert sorted(events) == list(range(1, window["as_of"] + 1))
    database = database_url.partition(":")[0]
    proof.record(
        "kill -9 of the server under 4 writers and a reader",
        database,
        f"{kills} kills, 0 of {len(acknowledged)} acknowledged lost",
        f"{len(events)} events read once each, in order",
    )
