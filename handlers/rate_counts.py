"""How often something happened lately, counted in a sliding window: by all processes together in Redis, where it is
configured, else by each for itself.

Redis may be slow or gone at any time. Then this process counts alone until Redis answers again: nobody is refused
because of that, and nobody waits for it, but those whose exchange with it was under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import msgspec
import structlog
from limits.aio.storage import MemoryStorage
from limits.aio.storage.redis import RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from msgspec import Struct

from events.config import BusConfig
from handlers.rate import Rate
from metrics.limits import LimitMetrics

log = structlog.get_logger(__name__)

# Seconds. An exchange with a healthy Redis takes one or two thousandths of one.
_TIMEOUT = 0.1
_PAUSE = 1.0  # between two looks whether Redis is there again
_QUIET = 60.0  # between two lines of the log about it
_SWEEP = 10.0  # between two looks for counts of this process that are over
# Exchanges with Redis at once, each on a connection of its own.
_AT_ONCE = 32


class Count(Struct, frozen=True):
    """`passes` says whether it was within the rate, and so was counted. `remaining` is how many more are.

    `seconds` is how long it takes until that grows.
    """

    passes: bool
    remaining: int
    seconds: float


class RateCounts:
    """To be started and closed in a running loop; it needs no Redis to be there."""

    def __init__(self, bus: BusConfig, metrics: LimitMetrics) -> None:
        self._metrics = metrics
        self._memory = MemoryStorage()
        self._own = SlidingWindowCounterRateLimiter(self._memory)
        self._redis = None if bus.url is None else _client(bus)
        self._shared = None if self._redis is None else SlidingWindowCounterRateLimiter(_Shared(self._redis))
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._waiting: asyncio.Task[None] | None = None  # for Redis to come back
        self._told = -_QUIET

    async def start(self) -> None:
        # Where this task is, the library starts none: it would look at all of its keys each time something is counted.
        self._memory.timer = asyncio.create_task(self._sweep(), name="sweep counts of rates")

    async def close(self) -> None:
        tasks = [task for task in (self._memory.timer, self._waiting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()

    async def hit(self, rate: Rate, *whose: str) -> Count:
        """Counts it for `whose`, if it is within the rate."""
        # Of one length, whatever a name is; and no name is told to Redis.
        key = hashlib.sha256(msgspec.json.encode(whose)).hexdigest()
        if self._shared is not None:
            if self._waiting is None:
                async with self._slots:
                    if self._waiting is None:  # else those before it have met what it would meet
                        try:
                            async with asyncio.timeout(_TIMEOUT):
                                return await _hit(self._shared, rate, key)
                        except Exception as error:  # whatever it is: a limit must not be what brings the server down
                            self._bypass(error)
            self._metrics.bypassed()
        return await _hit(self._own, rate, key)

    def _bypass(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._told >= _QUIET:
            self._told = now
            log.warning("rates are counted by each process alone", error=str(error) or type(error).__name__)
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._until_it_answers(self._redis), name="wait for Redis to count")

    async def _until_it_answers(self, redis: Any) -> None:
        while True:
            await asyncio.sleep(_PAUSE)
            try:
                async with asyncio.timeout(_TIMEOUT):
                    await redis.ping()
            except Exception as error:
                log.debug("Redis does not count yet", error=str(error) or type(error).__name__)
            else:
                self._waiting = None
                return

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            now = time.time()
            for key in [key for key, over in self._memory.expirations.items() if over <= now]:
                await self._memory.clear(key)


async def _hit(limiter: SlidingWindowCounterRateLimiter, rate: Rate, key: str) -> Count:
    passes = await limiter.hit(rate, key)
    stats = await limiter.get_window_stats(rate, key)
    seconds = stats.reset_time - time.time()
    if passes and seconds <= 0:  # the first of its window, which Redis tells to be over in no time
        seconds = rate.get_expiry()
    return Count(passes, stats.remaining, max(0.0, seconds))


class _Shared(RedisStorage):
    """The library's, over a client of ours: it would want a port in the address, and knows less about TLS."""

    def __init__(self, client: Any) -> None:
        self._client = client
        super().__init__("async+redis://", implementation="redispy", key_prefix="swarm:rate")

    def configure_bridge(self) -> None:
        assert isinstance(self.bridge, RedispyBridge)
        self.bridge.connection_getter = lambda readonly: self._client


def _client(bus: BusConfig) -> Any:
    # They take long to import.
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    assert bus.url is not None
    options: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": _TIMEOUT,
        "socket_connect_timeout": _TIMEOUT,
        "client_name": "swarm",
    }
    return RedisCluster.from_url(bus.url, **options) if bus.cluster else Redis.from_url(bus.url, **options)
