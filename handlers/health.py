"""How the process is: what its operator, its load balancer and its platform ask."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any, Literal

from aiohttp import web
from msgspec import Struct

from events.bus import Bus
from handlers.route import Call, Reply, Route
from handlers.version import VERSION
from storage.database import Database
from storage.records import now

# A probe must hear before it gives up itself; most wait five seconds.
CHECK_SECONDS = 2.0


class Health(Struct, frozen=True):
    """`database` is the synchronous engine, `async_database` the pool that requests use: `connected`, or why not.

    `redis` is `off` where none is configured. Without it everything works, a little later.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    timestamp: datetime
    database: str
    async_database: str
    redis: str
    mcp_servers: Literal["initialized", "degraded"]
    response_time_ms: float
    epoch: str | None
    version: str


class Life(Struct, frozen=True):
    """Whether the process lives, or is ready for requests."""

    status: Literal["alive", "ready", "starting", "draining"]


class Vitals:
    """Measures the process's health, and remembers whether it is on its way out."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self.draining = False
        self._bus = bus
        self._database = database
        self._measuring: asyncio.Task[Health] | None = None

    async def measure(self) -> Health:
        """Whoever asks while a measurement runs gets that one: probes must not add to the load that they look at."""
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure(), name="health")
        # Shielded: the prober that began it may go away, and others wait.
        return await asyncio.shield(self._measuring)

    async def _measure(self) -> Health:
        started = time.perf_counter()
        database, pool = await asyncio.gather(
            self._database.check_synchronous(CHECK_SECONDS), self._database.check(CHECK_SECONDS)
        )
        if pool == "connected" and not self._database.ready:
            pool = "schema is not ready"
        status: Literal["healthy", "degraded", "unhealthy"] = "healthy"
        if pool != "connected":
            status = "unhealthy"
        elif database != "connected" or self._bus.state not in {"connected", "off"}:
            status = "degraded"
        return Health(
            status=status,
            timestamp=now(),
            database=database,
            async_database=pool,
            redis=self._bus.state,
            mcp_servers="initialized",  # all that are configured: there is none
            response_time_ms=round((time.perf_counter() - started) * 1000, 1),
            epoch=self._database.epoch or None,
            version=VERSION,
        )

    @property
    def readiness(self) -> Life:
        if self.draining:
            return Life("draining")
        return Life("ready" if self._database.ready else "starting")


VITALS = web.AppKey("vitals", Vitals)

_UNCACHED = {"Cache-Control": "no-store"}


async def health(call: Call[Any, None]) -> Reply:
    measured = await call.resource(VITALS).measure()
    return Reply(measured, status=503 if measured.status == "unhealthy" else 200, headers=_UNCACHED)


async def live(call: Call[Any, None]) -> Reply:
    return Reply(Life("alive"), headers=_UNCACHED)


async def ready(call: Call[Any, None]) -> Reply:
    state = call.resource(VITALS).readiness
    return Reply(state, status=200 if state.status == "ready" else 503, headers=_UNCACHED)


ROUTES = (
    Route(
        method="GET",
        path="/health",
        handler=health,
        summary="Health, with both ways to the database tried; 503 where requests cannot be served",
        tag="Health",
        response=Health,
        also={503: Health},
    ),
    Route(
        method="GET",
        path="/health/live",
        handler=live,
        summary="Whether the process turns",
        tag="Health",
        response=Life,
    ),
    Route(
        method="GET",
        path="/health/ready",
        handler=ready,
        summary="Whether requests should come here; 503 before the database is there and once a drain has begun",
        tag="Health",
        response=Life,
        also={503: Life},
    ),
)
