"""Connections that go from one operation to the next that waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeout

from storage.leases import _IN_A_ROW, Lease, Leases
from tests.storage.store import bounded, until


class _Driver:
    closed = False

    def is_closed(self) -> bool:
        return self.closed


class _Connection:
    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self.driver_connection = _Driver()

    def close(self) -> None:
        self._pool.out -= 1


class _Pool:
    """An engine, as far as it is asked for connections."""

    def __init__(self) -> None:
        self.out = 0
        self.taken = 0
        self.failures: list[Exception] = []

    async def raw_connection(self) -> Any:
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop()
        self.out += 1
        self.taken += 1
        return _Connection(self)


def _leases(limit: int = 1, timeout: float = 60.0) -> tuple[Leases, _Pool]:
    pool: Any = _Pool()
    return Leases(pool, limit, timeout), pool


async def _acquiring(leases: Leases, count: int) -> list[asyncio.Task[Lease]]:
    before = len(leases._waiting)
    tasks = [asyncio.create_task(leases.acquire()) for _ in range(count)]
    await until(lambda: len(leases._waiting) == before + count)
    return tasks


async def test_who_waits_is_given_the_connection_itself_in_order() -> None:
    leases, pool = _leases()
    lease = await leases.acquire()
    first, second = await _acquiring(leases, 2)
    leases.release(lease, reusable=True)
    assert (await bounded(first))[0] is lease
    assert not second.done()
    leases.release(lease, reusable=True)
    assert (await bounded(second))[0] is lease
    leases.release(lease, reusable=True)
    assert (pool.taken, pool.out) == (1, 0)


@pytest.mark.parametrize("why", ["closed", "left open"])
async def test_one_that_cannot_be_used_again_is_replaced(why: str) -> None:
    leases, pool = _leases()
    lease = await leases.acquire()
    [waiting] = await _acquiring(leases, 1)
    lease.driver.closed = why == "closed"
    leases.release(lease, reusable=why == "closed")
    [other] = await bounded(waiting)
    assert other is not lease
    leases.release(other, reusable=True)
    assert (pool.taken, pool.out) == (2, 0)


async def test_it_goes_back_to_the_pool_now_and_then() -> None:
    leases, pool = _leases()
    lease = await leases.acquire()
    for _ in range(_IN_A_ROW + 1):
        [waiting] = await _acquiring(leases, 1)
        leases.release(lease, reusable=True)
        [lease] = await bounded(waiting)
    assert pool.taken == 2
    leases.release(lease, reusable=True)


async def test_who_waits_too_long_is_refused_and_leaves_nothing_behind() -> None:
    leases, pool = _leases(timeout=0.02)
    lease = await leases.acquire()
    tasks = await _acquiring(leases, 2)
    for task in tasks:
        with pytest.raises(PoolTimeout):
            await bounded(task)
    leases.release(lease, reusable=True)
    assert pool.out == 0
    [again] = await bounded(leases.acquire())
    leases.release(again, reusable=True)


async def test_who_goes_away_while_it_is_given_one_passes_it_on() -> None:
    leases, pool = _leases()
    lease = await leases.acquire()
    gone, waiting = await _acquiring(leases, 2)
    leases.release(lease, reusable=True)  # to the first
    gone.cancel()  # before it has noticed
    [found] = await bounded(waiting)
    assert found is lease
    assert gone.cancelled()
    leases.release(lease, reusable=True)
    assert pool.out == 0


async def test_who_cannot_connect_leaves_its_place_to_the_next() -> None:
    leases, pool = _leases()
    lease = await leases.acquire()
    refused, waiting = await _acquiring(leases, 2)
    pool.failures.append(ConnectionRefusedError())
    leases.release(lease, reusable=False)
    with pytest.raises(ConnectionRefusedError):
        await bounded(refused)
    [found] = await bounded(waiting)
    leases.release(found, reusable=True)
    assert pool.out == 0


async def test_as_many_are_out_as_may_be() -> None:
    leases, pool = _leases(limit=3)
    most = 0

    async def use() -> None:
        nonlocal most
        lease = await leases.acquire()
        most = max(most, pool.out)
        await asyncio.sleep(0)
        leases.release(lease, reusable=True)

    await bounded(*[use() for _ in range(200)])
    assert most == 3
    assert (pool.out, leases._given) == (0, 0)
