"""The bus over Redis: one channel a topic, named with the epoch, so that no timeline hears another's."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import struct
import time
from collections.abc import Callable, Iterable

import structlog
from redis.exceptions import RedisClusterException, RedisError

from events.bus import Listener
from events.config import BusConfig
from events.redis_link import RedisLink, redis_link

log = structlog.get_logger(__name__)

_PREFIX = "swarm"
_TIME = struct.Struct("!d")  # when a message was published, as `time.time()` has it
# (A cluster that is away says so by an exception that is no `RedisError`.)
_AWAY = (RedisError, RedisClusterException, OSError, TimeoutError)


class RedisBus:
    """Hears and rings by connections of its own, each kept by one task, which makes it anew when it fails.

    What is to be published waits in a queue that is bounded in bytes: beyond it, and while Redis is away, it is
    dropped. Nobody waits for Redis, whether it is gone, hangs, or is slow.
    """

    def __init__(self, config: BusConfig, link: Callable[[BusConfig], RedisLink] = redis_link) -> None:
        self.live = False
        self.state = "not connected yet"
        self.dropped = 0  # messages that were not published
        self._config = config
        self._link = link
        # Each message begins with the name of who has sent it, which has heard it already.
        self._self = secrets.token_hex(4).encode()
        self._epoch = ""
        self._topics: dict[str, None] = {}
        self._added: dict[str, None] = {}
        self._removed: dict[str, None] = {}  # in this session: the next one begins with what is listened to then
        self._in_session = False
        self._changed = asyncio.Event()
        self._pending: dict[str, list[bytes]] = {}
        self._sizes: dict[str, int] = {}  # in bytes, of what is pending by topic
        self._since = 0.0  # when the oldest of it was published
        self._pending_bytes = 0
        self._rung = asyncio.Event()
        self._deaf_until = 0.0  # when publishing failed, it is not tried again before
        self._listener: Listener | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._tasks = [
            asyncio.create_task(self._listen(), name="doorbell, listening"),
            asyncio.create_task(self._ring(), name="doorbell, ringing"),
        ]

    async def close(self) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.live = False

    def begin(self, epoch: str) -> None:
        if epoch == self._epoch:
            return
        self._remove(self._topics)
        self._topics.clear()
        self._added.clear()
        self._pending.clear()
        self._sizes.clear()
        self._pending_bytes = 0
        self._epoch = epoch
        self._changed.set()

    def subscribe(self, topics: Iterable[str]) -> None:
        added = dict.fromkeys(topics)
        self._topics |= added
        self._added |= added
        self._changed.set()

    def unsubscribe(self, topics: Iterable[str]) -> None:
        gone = list(topics)
        for topic in gone:
            self._topics.pop(topic, None)
            self._added.pop(topic, None)
        self._remove(gone)
        self._changed.set()

    def _remove(self, topics: Iterable[str]) -> None:
        if self._in_session:
            self._removed |= dict.fromkeys(map(self._channel, topics))

    def publish(self, topic: str, data: bytes) -> None:
        if asyncio.get_running_loop().time() < self._deaf_until or self._pending_bytes > self._config.queue_bytes:
            self.dropped += 1
            return
        if not self._pending:
            self._since = time.time()
        waiting = self._pending.setdefault(topic, [])
        if waiting and waiting[-1] == data:
            return
        size = self._sizes[topic] = self._sizes.get(topic, 0) + len(data)
        if size > self._config.message_bytes:
            # A knock: who hears it reads the database. So nothing else need be said.
            self._pending_bytes -= sum(map(len, waiting))
            waiting[:] = [b""]
        else:
            waiting.append(data)
            self._pending_bytes += len(data)
        self._rung.set()

    def _channel(self, topic: str) -> str:
        return f"{_PREFIX}:{self._epoch}:{topic}"

    # Ringing.

    async def _ring(self) -> None:
        link: RedisLink | None = None
        try:
            while not self._closing:
                await self._rung.wait()
                self._rung.clear()
                pending, self._pending = self._pending, {}
                self._sizes.clear()
                self._pending_bytes = 0
                head = self._self + _TIME.pack(self._since)
                # A knock among them says that all must be read.
                messages = [
                    (self._channel(topic), head if b"" in parts else head + b"".join(parts))
                    for topic, parts in pending.items()
                ]
                if not messages:
                    continue
                try:
                    if link is None:
                        link = self._link(self._config)
                    await link.publish(messages)
                except Exception as error:
                    # Whatever it is: nobody else would ever ring again.
                    self.dropped += len(messages)
                    self._deaf_until = asyncio.get_running_loop().time() + self._pause()
                    unknown = None if isinstance(error, _AWAY) else error
                    log.warning("the doorbell did not ring", error=_why(error), topics=len(messages), exc_info=unknown)
                    await _closed(link)
                    link = None
        finally:
            await _closed(link)

    # Listening.

    async def _listen(self) -> None:
        while not self._closing:
            link = self._link(self._config)
            try:
                await self._session(link)
            except* _AWAY as errors:
                self.state = _why(errors.exceptions[0])
                if self.live:
                    log.warning("the doorbell is away", error=self.state)
            except* Exception:
                self.state = "failed"
                log.exception("the doorbell failed")
            finally:
                self.live = self._in_session = False
                await _closed(link)
            await asyncio.sleep(self._pause())

    async def _session(self, link: RedisLink) -> None:
        # A channel of its own: so its connection is one that listens, whoever is watched, and silence can be told
        # from a connection that is dead.
        await link.open(f"{_PREFIX}:{self._self.decode()}")
        self._removed.clear()
        self._in_session = True
        self._added = dict(self._topics)
        self._changed.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear(link), name="doorbell, hearing")
            tasks.create_task(self._keep_subscribed(link), name="doorbell, subscribing")

    async def _hear(self, link: RedisLink) -> None:
        assert self._listener is not None
        asked = False
        while not self._ending():
            message = await link.receive(self._config.silence)
            if message is None:
                if asked:
                    raise TimeoutError("silent")
                asked = True
                await link.ping()
                continue
            asked = False
            kind, channel, data = message
            if not self.live:
                self.live, self.state = True, "connected"
                log.info("the doorbell is connected")
            topic = self._topic(channel)
            if topic is None:
                continue
            if kind == "subscribe":
                self._listener.listening(topic)
            elif kind == "message" and not data.startswith(self._self):
                start = len(self._self) + _TIME.size
                if len(data) < start:  # the words of another version: a knock
                    self._listener.heard(topic, b"", 0.0)
                    continue
                [published] = _TIME.unpack_from(data, len(self._self))
                self._listener.heard(topic, data[start:], max(0.0, time.time() - published))

    def _topic(self, channel: str) -> str | None:
        prefix, _, rest = channel.partition(":")
        epoch, colon, topic = rest.partition(":")
        return topic if prefix == _PREFIX and colon and epoch == self._epoch and topic in self._topics else None

    async def _keep_subscribed(self, link: RedisLink) -> None:
        while not self._ending():
            await self._changed.wait()
            self._changed.clear()
            added, self._added = self._added, {}
            removed, self._removed = self._removed, {}
            channels = dict.fromkeys(map(self._channel, added))
            await link.unsubscribe(channel for channel in removed if channel not in channels)
            await link.subscribe(channels)

    def _ending(self) -> bool:
        """Whether the task that asks is to end. It is cancelled then, but that may have been lost on its way.

        Python 3.11's `wait_for`, in which redis-py sends, forgets it where the sending is done at the same moment, and
        a `TaskGroup` does where a task of it fails meanwhile.
        """
        task = asyncio.current_task()
        return self._closing or (task is not None and task.cancelling() > 0)

    def _pause(self) -> float:
        # Spread, so that the processes of a Redis that comes back do not come all at once.
        return random.uniform(0.5, 1.0) * self._config.pause  # noqa: S311 (spreads load, protects nothing)


async def _closed(link: RedisLink | None) -> None:
    if link is not None:
        with contextlib.suppress(*_AWAY):
            await link.close()


def _why(error: BaseException) -> str:
    """Without what it was about: an address may hold a password."""
    return "timeout" if isinstance(error, TimeoutError) else type(error).__name__
