"""Connections of the pool, passed from one operation to the next that waits.

To give one back to SQLAlchemy's pool and take it out again costs more than a small query does, its greenlet above all.
While others wait, it goes to the first of them instead.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import PoolProxiedConnection

# After so many it goes back to the pool: who waits there, for a transaction, must have its turn.
_IN_A_ROW = 32


class Lease:
    """A connection that one operation has; `driver` is the driver's own."""

    __slots__ = ("connection", "driver", "passed_on")

    def __init__(self, connection: PoolProxiedConnection) -> None:
        self.connection = connection
        self.driver: Any = connection.driver_connection
        self.passed_on = 0

    @property
    def lives(self) -> bool:
        """Whether the server has not closed it, as far as the driver knows. SQLite has no server."""
        is_closed = getattr(self.driver, "is_closed", None)
        return is_closed is None or not is_closed()


class Leases:
    """At most `limit` of the engine's connections at a time; the others wait in order, for `timeout` seconds each."""

    def __init__(self, engine: AsyncEngine, limit: int, timeout: float) -> None:
        self._engine = engine
        self._limit = limit
        self._timeout = timeout
        self._given = 0
        self._waiting: dict[asyncio.Future[Lease | None], float] = {}  # until when, the oldest first
        self._expiry: asyncio.TimerHandle | None = None

    async def acquire(self) -> Lease:
        """Raises what the pool raises when none becomes free in time, and what connecting raises."""
        if self._given < self._limit:
            self._given += 1
        else:
            lease = await self._wait()
            if lease is not None:
                return lease
        try:
            return Lease(await self._engine.raw_connection())
        except BaseException:
            self._pass_place_on()
            raise

    def release(self, lease: Lease, *, reusable: bool) -> None:
        """`reusable` is one in whose last exchange nothing was left open."""
        if reusable and lease.passed_on < _IN_A_ROW and lease.lives:
            waiter = self._first()
            if waiter is not None:
                lease.passed_on += 1
                waiter.set_result(lease)
                return
        # Nothing in it waits: the pool has a place for each of its connections, and resets none (see `engines`).
        lease.connection.close()
        self._pass_place_on()

    async def _wait(self) -> Lease | None:
        """A connection, or None: a place for one."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Lease | None] = loop.create_future()
        self._waiting[waiter] = due = loop.time() + self._timeout
        if self._expiry is None:
            self._expiry = loop.call_at(due, self._expire)
        try:
            return await waiter
        except asyncio.CancelledError:
            self._waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was given something in the moment in which it was cancelled.
                lease = waiter.result()
                if lease is None:
                    self._pass_place_on()
                else:
                    self.release(lease, reusable=True)
            raise

    def _first(self) -> asyncio.Future[Lease | None] | None:
        while self._waiting:
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if not waiter.done():
                return waiter
        return None

    def _pass_place_on(self) -> None:
        waiter = self._first()
        if waiter is None:
            self._given -= 1
        else:
            waiter.set_result(None)

    def _expire(self) -> None:
        """One timer serves all who wait: each waits equally long."""
        self._expiry = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for waiter, due in list(self._waiting.items()):
            if due > now:
                self._expiry = loop.call_at(due, self._expire)
                break
            del self._waiting[waiter]
            if not waiter.done():
                waiter.set_exception(PoolTimeout("no database connection became free in time"))
