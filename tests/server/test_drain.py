"""What is left of the time when a process ends, and what makes it end."""

import asyncio
import os
from collections.abc import Callable
from signal import SIGINT, SIGQUIT, SIGTERM, Signals
from typing import Any

import aiohttp
import pytest

from server.drain import Drain, heed_signals
from tests.faults.deployment import Deployment
from tests.faults.follower import follow, stop_all, until


async def _never() -> None:
    await asyncio.Event().wait()


async def test_a_resource_that_does_not_close_leaves_time_to_the_next_one() -> None:
    drain = Drain(0.2)
    drain.begin()
    closed: list[str] = []

    async def close() -> None:
        await asyncio.sleep(0)
        closed.append("next")

    async with asyncio.timeout(10):
        await drain.bounded("stuck", _never)
        await drain.bounded("next", close)
    assert closed == ["next"]


async def test_hurrying_ends_what_is_being_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.drain._HURRIED", 0.05)
    drain = Drain(600)
    drain.begin()
    async with asyncio.timeout(10):
        closing = asyncio.create_task(drain.bounded("stuck", _never))
        await asyncio.sleep(0)
        drain.hurry()
        await closing
        await drain.bounded("another", _never)


async def test_what_waits_on_although_it_is_cancelled_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pool does that closes its connections one after the other, and waits for each."""
    monkeypatch.setattr("server.drain._HURRIED", 0.05)
    let_go = asyncio.Event()

    async def stubborn() -> None:
        try:
            await _never()
        finally:
            await let_go.wait()

    drain = Drain(600)
    drain.begin()
    async with asyncio.timeout(10):
        closing = asyncio.create_task(drain.bounded("stubborn", stubborn))
        await asyncio.sleep(0)
        drain.hurry()
        await asyncio.sleep(0.1)
        drain.hurry()  # once more, when the time is over already
        await closing
    let_go.set()


async def test_what_a_resource_raises_while_it_is_closed_is_raised() -> None:
    async def fail() -> None:
        raise RuntimeError("broken")

    drain = Drain(600)
    drain.begin()
    with pytest.raises(RuntimeError, match="broken"):
        await drain.bounded("resource", fail)


async def test_nothing_is_bounded_before_it_begins() -> None:
    closed = asyncio.Event()

    async def close() -> None:
        closed.set()

    await Drain(0.0).bounded("resource", close)
    assert closed.is_set()


Heed = tuple[Callable[[Signals], None], list[str]]


@pytest.fixture
async def heed(monkeypatch: pytest.MonkeyPatch) -> Heed:
    """What gets signals instead of this process, and what they have led to."""
    handlers: dict[Signals, tuple[Any, ...]] = {}
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "add_signal_handler", lambda number, *handler: handlers.update({number: handler}))
    done: list[str] = []
    heed_signals(lambda: done.append("begin"), lambda: done.append("hurry"))

    def get(number: Signals) -> None:
        handler, *arguments = handlers[number]
        handler(*arguments)

    return get, done


@pytest.mark.parametrize(
    "signals", [(SIGTERM, SIGTERM), (SIGINT, SIGQUIT), (SIGQUIT, SIGINT), (SIGQUIT, SIGQUIT)], ids=str
)
async def test_the_master_s_echo_of_a_signal_hurries_nothing_but_the_next_one_does(
    heed: Heed, signals: tuple[Signals, Signals]
) -> None:
    get, done = heed
    for number in signals:
        get(number)
    assert done == ["begin"]
    get(signals[0])
    assert done == ["begin", "hurry"]


@pytest.mark.parametrize("signals", [(SIGTERM, SIGQUIT), (SIGTERM, SIGINT), (SIGINT, SIGINT)], ids=str)
async def test_a_second_signal_that_is_no_echo_hurries_at_once(heed: Heed, signals: tuple[Signals, Signals]) -> None:
    get, done = heed
    for number in signals:
        get(number)
    assert done == ["begin", "hurry"]


async def test_what_comes_late_is_no_echo(heed: Heed, monkeypatch: pytest.MonkeyPatch) -> None:
    get, done = heed
    loop = asyncio.get_running_loop()
    get(SIGTERM)
    later = loop.time() + 1.5
    monkeypatch.setattr(loop, "time", lambda: later)
    get(SIGTERM)
    assert done == ["begin", "hurry"]


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
async def test_requests_in_flight_end_when_master_and_workers_are_told_at_once(
    sqlite_url: str, number: Signals
) -> None:
    """As systemd does it, and Ctrl-C."""
    async with (
        Deployment(sqlite_url, workers=1) as deployment,
        aiohttp.ClientSession(deployment.origin) as session,
    ):
        async with session.post("/api/conversations", json={}) as answer:
            conversation_id = (await answer.json())["id"]
        [reader] = await follow(deployment.port, conversation_id, 1)
        begun, rest = asyncio.Event(), asyncio.Event()

        async def lines() -> Any:
            yield b'{"role": "user", "content": "first"}\n'
            begun.set()
            await rest.wait()
            yield b'{"role": "user", "content": "last"}\n'

        importing = asyncio.create_task(
            session.post(
                f"/api/conversations/{conversation_id}/messages",
                data=lines(),
                headers={"Content-Type": "application/x-ndjson"},
                expect100=True,  # so the body is asked for when the request is in flight
            )
        )
        await begun.wait()
        os.killpg(deployment.master.pid, number)
        await until(lambda: reader.ended_by_drain == 1, "the stream ends")
        await until(lambda: reader.refusals, "the master has heard it, too")
        rest.set()
        async with await importing as answer:
            assert (await answer.json())["accepted"] == 2
            assert answer.headers["Connection"] == "close"
        await stop_all([reader])
        code, _ = await deployment.end(0)  # which is no signal: it waits
        assert code == 0
