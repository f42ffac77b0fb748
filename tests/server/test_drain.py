"""What is left of the time when a process ends."""

import asyncio

import pytest

from server.drain import Drain


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


async def test_nothing_is_bounded_before_it_begins() -> None:
    closed = asyncio.Event()

    async def close() -> None:
        closed.set()

    await Drain(0.0).bounded("resource", close)
    assert closed.is_set()
