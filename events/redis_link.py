"""The connections to Redis that a bus uses: one to listen, some to publish. Each exchange is bounded in time.

Nothing here reconnects by itself, as redis-py would: whoever uses a link that failed closes it and opens another, so
that it knows of each hole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from events.config import BusConfig

Message = tuple[str, str, bytes]  # kind, channel, data

_NAMES = 500  # of one SUBSCRIBE: bounds how long one command is


class RedisLink(Protocol):
    """Raises `RedisError`, `OSError` or `TimeoutError` for all that goes wrong between here and Redis."""

    async def open(self, home: str) -> None:
        """Connects, and subscribes to the channel `home`."""

    async def close(self) -> None: ...

    async def subscribe(self, channels: Iterable[str]) -> None: ...

    async def unsubscribe(self, channels: Iterable[str]) -> None: ...

    async def receive(self, timeout: float) -> Message | None:
        """The next message, or None when there is none within `timeout` seconds."""

    async def ping(self) -> None:
        """Asks for a message, so that silence tells."""

    async def publish(self, messages: Sequence[tuple[str, bytes]]) -> None: ...


def redis_link(config: BusConfig) -> RedisLink:
    return _ClusterLink(config) if config.cluster else _SingleLink(config)


def _options(config: BusConfig) -> dict[str, Any]:
    return {"socket_timeout": config.timeout, "socket_connect_timeout": config.timeout, "client_name": "swarm"}


class _SingleLink:
    """One Redis, or one that others replicate: `SUBSCRIBE` and `PUBLISH`."""

    def __init__(self, config: BusConfig) -> None:
        assert config.url is not None
        self._timeout = config.timeout
        self._redis: Any = Redis.from_url(config.url, retry=Retry(NoBackoff(), 0), **_options(config))
        self._pubsub: Any = self._redis.pubsub()

    async def open(self, home: str) -> None:
        async with asyncio.timeout(self._timeout):
            await self._pubsub.subscribe(home)

    async def close(self) -> None:
        await self._pubsub.aclose()
        await self._redis.aclose()

    async def subscribe(self, channels: Iterable[str]) -> None:
        for names in _slices(channels):
            async with asyncio.timeout(self._timeout):
                await self._pubsub.subscribe(*names)

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        for names in _slices(channels):
            async with asyncio.timeout(self._timeout):
                await self._pubsub.unsubscribe(*names)

    async def receive(self, timeout: float) -> Message | None:
        return _message(await self._pubsub.get_message(timeout=timeout))

    async def ping(self) -> None:
        async with asyncio.timeout(self._timeout):
            await self._pubsub.ping()

    async def publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        async with asyncio.timeout(self._timeout):
            if len(messages) == 1:
                await self._redis.publish(*messages[0])
                return
            pipeline = self._redis.pipeline(transaction=False)
            for channel, data in messages:
                pipeline.publish(channel, data)
            await pipeline.execute()


class _ClusterLink:
    """A Redis Cluster: sharded pub/sub, in which a message goes to the nodes of its channel's slot alone."""

    # redis-py asks one node after another and waits at each for so long.
    _TURN = 0.005

    def __init__(self, config: BusConfig) -> None:
        assert config.url is not None
        self._timeout = config.timeout
        self._cluster: Any = RedisCluster.from_url(config.url, retry=Retry(NoBackoff(), 1), **_options(config))
        self._pubsub: Any = None
        self._home = ""

    async def open(self, home: str) -> None:
        async with asyncio.timeout(self._timeout):
            await self._cluster.initialize()
            self._pubsub = self._cluster.pubsub()
            self._home = home
            await self._pubsub.ssubscribe(home)

    async def close(self) -> None:
        if self._pubsub is not None:
            await self._pubsub.aclose()
        await self._cluster.aclose()

    async def subscribe(self, channels: Iterable[str]) -> None:
        for name in channels:  # each may be of another slot
            async with asyncio.timeout(self._timeout):
                await self._pubsub.ssubscribe(name)

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        for name in channels:
            async with asyncio.timeout(self._timeout):
                await self._pubsub.sunsubscribe(name)

    async def receive(self, timeout: float) -> Message | None:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while loop.time() < until:
            message = _message(await self._pubsub.get_sharded_message(timeout=self._TURN))
            if message is not None:
                return message
        return None

    async def ping(self) -> None:
        # A sharded connection takes no PING of its own from redis-py: a second subscription is confirmed as well.
        async with asyncio.timeout(self._timeout):
            await self._pubsub.ssubscribe(self._home)

    async def publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        async with asyncio.timeout(self._timeout):
            await asyncio.gather(*(self._cluster.spublish(channel, data) for channel, data in messages))


def _message(found: dict[str, Any] | None) -> Message | None:
    if found is None:
        return None
    kind = (
        found["type"].removeprefix("s")
        if found["type"] in {"smessage", "ssubscribe", "sunsubscribe"}
        else found["type"]
    )
    channel, data = found["channel"], found["data"]
    return (
        kind,
        channel.decode() if isinstance(channel, bytes) else channel or "",
        data if isinstance(data, bytes) else b"",
    )


def _slices(channels: Iterable[str]) -> Iterable[list[str]]:
    names = list(channels)
    return (names[start : start + _NAMES] for start in range(0, len(names), _NAMES))
