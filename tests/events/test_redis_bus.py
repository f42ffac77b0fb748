"""The bus over a real Valkey server: what is heard, what is not, and that nobody ever waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from redis.exceptions import RedisClusterException

from events.config import BusConfig
from events.redis_bus import RedisBus
from events.redis_link import Message
from events.redis_url import parse_redis_url
from storage.timeline import random_epoch
from tests.free_port import free_port
from tests.valkey_server import ValkeyServer


class Ear:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.said: list[tuple[str, bytes]] = []
        self.confirmed: list[str] = []

    def heard(self, topic: str, data: bytes, age: float) -> None:
        assert age >= 0
        self.said.append((topic, data))

    def listening(self, topic: str) -> None:
        self.confirmed.append(topic)

    def all_of(self, topic: str) -> bytes:
        """What was said there, however it was joined on its way."""
        return b"".join(data for name, data in self.said if name == topic)


async def _until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def _bus(config: BusConfig, epoch: str, *topics: str) -> AsyncIterator[tuple[RedisBus, Ear]]:
    """A process's bus, connected, that listens to these topics."""
    bus, ear = RedisBus(config), Ear()
    bus.begin(epoch)
    bus.subscribe(topics)
    await bus.start(ear)
    try:
        await _until(lambda: bus.live and set(ear.confirmed) >= set(topics))
        yield bus, ear
    finally:
        await bus.close()


@pytest.fixture(params=["single", "cluster"])
def config(request: pytest.FixtureRequest) -> BusConfig:
    cluster = request.param == "cluster"
    server: ValkeyServer = request.getfixturevalue("valkey_cluster" if cluster else "valkey")
    return BusConfig(server.url, cluster=cluster)


@pytest.fixture
def epoch() -> str:
    return random_epoch()


async def test_others_hear_what_is_said_in_its_order_and_who_says_it_does_not(config: BusConfig, epoch: str) -> None:
    async with _bus(config, epoch, "t/a", "t/b") as (one, ear), _bus(config, epoch, "t/a", "t/") as (_, other):
        for number in range(100):
            one.publish("t/a", b"%d " % number)
            one.publish("t/b", b"not for the other")
            if number % 7 == 0:
                await asyncio.sleep(0)
        one.publish("t/", b"end")
        await _until(lambda: other.all_of("t/") and other.all_of("t/a").endswith(b"99 "))
        assert other.all_of("t/a") == b"".join(b"%d " % number for number in range(100))
        assert {topic for topic, _ in other.said} == {"t/a", "t/"}
        assert ear.said == []


async def test_who_no_longer_listens_hears_nothing(config: BusConfig, epoch: str) -> None:
    async with _bus(config, epoch) as (one, _), _bus(config, epoch, "t/a", "t/b") as (other, ear):
        other.unsubscribe(["t/a"])
        one.publish("t/a", b"unheard")
        one.publish("t/b", b"heard")
        await _until(lambda: ear.said)
        assert ear.said == [("t/b", b"heard")]


async def test_each_subscription_is_confirmed_also_of_what_is_listened_to_already(
    config: BusConfig, epoch: str
) -> None:
    """Whoever begins to listen must know from when on: what was said before is found in the database."""
    async with _bus(config, epoch, "t/a") as (bus, ear):
        bus.subscribe(["t/a", "t/c"])
        await _until(lambda: sorted(ear.confirmed) == ["t/a", "t/a", "t/c"])


async def test_another_timeline_is_another_place(config: BusConfig, epoch: str) -> None:
    async with _bus(config, epoch) as (one, _), _bus(config, epoch, "t/a") as (other, ear):
        other.begin(random_epoch())
        other.subscribe(["t/a"])
        await _until(lambda: ear.confirmed == ["t/a", "t/a"])
        one.publish("t/a", b"of the old one")
        other.subscribe(["t/b"])
        await _until(lambda: "t/b" in ear.confirmed)
        assert ear.said == []


async def test_what_is_large_is_a_knock(config: BusConfig, epoch: str) -> None:
    async with _bus(config, epoch) as (one, _), _bus(config, epoch, "t/a") as (_, ear):
        one.publish("t/a", b"small")
        one.publish("t/a", b"." * (config.message_bytes + 1))
        await _until(lambda: ear.said)
        assert ear.said == [("t/a", b"")]


async def test_much_that_is_said_together_is_a_knock_too(config: BusConfig, epoch: str) -> None:
    part = b"x" * (config.message_bytes // 3)
    async with _bus(config, epoch, "t/a") as (one, _), _bus(config, epoch, "t/a") as (_, other):
        for n in range(5):  # in one turn of the loop: one message
            one.publish("t/a", part + b"%d" % n)
        await _until(lambda: other.said)
        assert other.said == [("t/a", b"")]
        assert one._pending_bytes == 0
        one.publish("t/a", b"small again")
        await _until(lambda: len(other.said) == 2)
        assert other.said[1] == ("t/a", b"small again")


async def test_what_nobody_listens_to_any_more_is_not_kept_while_redis_is_away() -> None:
    bus = RedisBus(BusConfig(f"redis://127.0.0.1:{free_port()}"))
    bus.begin("e")
    await bus.start(Ear())
    try:
        for n in range(1_000):
            bus.subscribe([f"t/{n}"])
            bus.unsubscribe([f"t/{n}"])
        assert (len(bus._topics), len(bus._added), len(bus._removed)) == (0, 0, 0)
    finally:
        await bus.close()


@pytest.mark.parametrize("error", [RedisClusterException("no node can be reached"), RuntimeError("a defect")])
async def test_it_rings_again_whatever_has_kept_it_from_ringing(
    config: BusConfig, epoch: str, error: Exception
) -> None:
    async with _bus(config, epoch, "t/a") as (one, _), _bus(config, epoch, "t/a") as (_, other):
        made = one._link
        failures = [error]

        class Failing:
            async def publish(self, messages: object) -> None:
                raise failures.pop()

            async def close(self) -> None:
                pass

        link: Any = Failing()
        one._link = lambda config: link if failures else made(config)
        one.publish("t/a", b"lost")
        await _until(lambda: one.dropped)
        one._deaf_until = 0.0
        one.publish("t/a", b"heard")
        await _until(lambda: other.said)
        assert other.said == [("t/a", b"heard")]


class FakeLink:
    """A link that receives nothing. `error` ends its receiving; once it `forgets`, subscribing is not cancelled."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.forgets = False
        self.receiving = self.subscribing = self.closed = False

    async def open(self, home: str) -> None:
        return

    async def close(self) -> None:
        self.closed = True

    async def subscribe(self, channels: Iterable[str]) -> None:
        if self.forgets:
            self.subscribing = True
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        return

    async def receive(self, timeout: float) -> Message | None:
        self.receiving = True
        try:
            await asyncio.Event().wait()
        finally:
            self.receiving = False
            if self.error is not None:
                raise self.error
        raise AssertionError("nothing comes")

    async def ping(self) -> None:
        return

    async def publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        return


@pytest.mark.parametrize("way", ["fails instead", "forgets"])
async def test_it_closes_also_where_its_cancellation_is_lost_on_its_way(way: str) -> None:
    """As redis-py may lose it while a command is on its way, and Python 3.11's `wait_for`, in which it sends."""
    links: list[FakeLink] = []

    def link(config: BusConfig) -> FakeLink:
        links.append(FakeLink())
        return links[-1]

    bus = RedisBus(BusConfig("redis://there", pause=0.0), link)
    await bus.start(Ear())
    await _until(lambda: links and links[0].receiving)
    if way == "forgets":
        links[0].forgets = True
        bus.subscribe(["t/a"])
        await _until(lambda: links[0].subscribing)
    else:
        links[0].error = ConnectionError("closed under its reader")
    async with asyncio.timeout(10):
        await bus.close()
    assert links[0].closed
    assert len(links) == 1


async def test_a_cut_connection_is_made_again_and_every_topic_is_confirmed_anew(
    own_valkey: ValkeyServer, epoch: str
) -> None:
    config = BusConfig(own_valkey.url, pause=0.05)
    async with _bus(config, epoch) as (one, _), _bus(config, epoch, "t/a", "t/b") as (_, ear):
        with own_valkey.client() as client:
            client.client_kill_filter(_type="pubsub")
        await _until(lambda: sorted(ear.confirmed) == ["t/a", "t/a", "t/b", "t/b"])
        one.publish("t/a", b"heard")
        await _until(lambda: ear.said == [("t/a", b"heard")])


async def test_a_server_that_is_killed_is_away_and_comes_back(own_valkey: ValkeyServer, epoch: str) -> None:
    config = BusConfig(own_valkey.url, pause=0.05)
    async with _bus(config, epoch) as (one, _), _bus(config, epoch, "t/a") as (other, ear):
        await asyncio.to_thread(own_valkey.kill)
        await _until(lambda: not one.live and not other.live)
        assert other.state == "ConnectionError"
        one.publish("t/a", b"lost")
        await _until(lambda: one.dropped)
        await asyncio.to_thread(own_valkey.start)
        await _until(lambda: one.live and other.live and len(ear.confirmed) == 2)

        def said_again() -> bool:
            one.publish("t/a", b"%d" % time.monotonic_ns())  # dropped while it remembers its failure
            return bool(ear.said)

        await _until(said_again)
        assert b"lost" not in ear.all_of("t/a")


async def test_nobody_waits_for_a_server_that_hangs(own_valkey: ValkeyServer, epoch: str) -> None:
    config = BusConfig(own_valkey.url, timeout=0.2, silence=0.2, pause=0.05, queue_bytes=1_000_000)
    async with _bus(config, epoch) as (one, _), _bus(config, epoch, "t/a") as (other, ear):
        own_valkey.suspend()
        waiting = 0
        for number in range(5_000):
            one.publish(f"t/{number}", b"." * 1_000)
            waiting = max(waiting, one._pending_bytes)
            if number % 100 == 0:
                await asyncio.sleep(0)
        assert waiting <= config.queue_bytes + 1_100
        assert one.dropped
        await _until(lambda: not one.live and not other.live)
        assert one.state == "timeout"
        own_valkey.resume()
        await _until(lambda: one.live and other.live and len(ear.confirmed) >= 2)


async def test_a_server_that_is_not_there_stops_nothing_and_its_password_is_not_told(
    epoch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = BusConfig(f"redis://user:secret@127.0.0.1:{free_port()}/0", pause=0.01)
    assert "secret" not in repr(config)
    bus = RedisBus(config)
    bus.begin(epoch)
    await bus.start(Ear())
    bus.publish("t/a", b"lost")
    await _until(lambda: bus.dropped and bus.state == "ConnectionError")
    await bus.close()
    captured = capsys.readouterr()
    assert "secret" not in captured.out + captured.err


@pytest.mark.parametrize("text", ["redis://host", "rediss://user:pw@host:6380/1", "redis://:p%40w@[::1]:6379/0"])
def test_addresses_of_redis(text: str) -> None:
    assert parse_redis_url(text) == text


@pytest.mark.parametrize(
    "text", ["", "host:6379", "http://host", "redis://", "redis://host:port", "redis://:secret@ho st", "redis://host:0"]
)
def test_what_is_no_address_of_redis_is_named_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"^REDIS_URL must look like ") as refused:
        parse_redis_url(text)
    assert "secret" not in str(refused.value)
