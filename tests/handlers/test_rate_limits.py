"""A principal's requests are limited: what is too much is told when it may come again, and nothing of it is done."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientResponse
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from events.config import BusConfig
from handlers.principal import AUTHENTICATION, Principal
from handlers.problem import Problem
from handlers.rate import parse_rate
from handlers.rate_counts import _AT_ONCE, RateCounts
from handlers.rate_limits import LEFT, POLICY, RateLimits
from handlers.resources import RATE_LIMITS
from metrics.limits import LimitMetrics
from tests.api import Client, new_conversation, problem
from tests.conftest import serving
from tests.figures import read_figures
from tests.sse_reader import SseReader
from tests.tcp_proxy import TcpProxy
from tests.valkey_server import ValkeyServer

LIMIT = 4
LIST = "/api/conversations"
# A window that does not end while a test runs.
LIMITED = {"SWARM_RATE_LIMIT": f"{LIMIT}/day"}
BYPASSES = "swarm_rate_limit_bypasses_total"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One of the two is enough: nothing here has to do with a database."""
    return sqlite_url


def _standing(answer: ClientResponse) -> tuple[int, int]:
    """What is left, and in how many seconds it is more."""
    assert answer.headers.getall(POLICY) == [f'"default";q={LIMIT};w=86400']
    found = re.fullmatch(r'"default";r=([0-9]+);t=([0-9]+)', answer.headers[LEFT])
    assert found is not None
    return int(found[1]), int(found[2])


async def _use_up(client: Client) -> None:
    for left in reversed(range(LIMIT)):
        answer = await client.get(LIST)
        assert answer.status == 200
        assert _standing(answer)[0] == left


async def _refused(answer: ClientResponse) -> None:
    document = await problem(answer, 429)
    assert document["type"] == "/problems/too-many-requests"
    left, seconds = _standing(answer)
    assert left == 0
    assert answer.headers["Retry-After"] == str(seconds)
    assert 0 < seconds <= 86_400


# Of one process.


def _speak_as(client: Client, monkeypatch: pytest.MonkeyPatch, principal: Principal) -> None:
    monkeypatch.setattr(client.app[AUTHENTICATION], "recall", lambda request: principal)


@pytest.mark.parametrize("environment", [LIMITED])
async def test_what_is_left_is_said_and_one_more_is_refused(client: Client) -> None:
    await _use_up(client)
    await _refused(await client.get(LIST))
    await _refused(await client.post(LIST, json={}))
    await _refused(await client.get(f"{LIST}/no-id"))


@pytest.mark.parametrize("environment", [LIMITED])
async def test_nothing_is_done_of_what_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await _use_up(client)
    await _refused(await client.post(LIST, json={}))
    _speak_as(client, monkeypatch, Principal("default", "somebody else"))
    assert (await (await client.get(LIST)).json())["items"] == []


@pytest.mark.parametrize("environment", [LIMITED])
async def test_errors_count_and_say_what_is_left(client: Client) -> None:
    for left, request in enumerate(
        (
            client.post(LIST, data=b"{", headers={"Content-Type": "application/json"}),
            client.get(f"{LIST}?limit=x"),
            client.get(f"{LIST}/no-id"),
            client.head(LIST),
        ),
        1,
    ):
        answer = await request
        assert answer.status in {200, 400, 404, 422}
        assert _standing(answer)[0] == LIMIT - left
    await _refused(await client.get(LIST))


@pytest.mark.parametrize("environment", [LIMITED])
async def test_health_metrics_and_documentation_are_for_everyone(client: Client) -> None:
    await _use_up(client)
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs"):
        answer = await client.get(path)
        assert answer.status == 200
        assert LEFT not in answer.headers


@pytest.mark.parametrize("environment", [LIMITED])
async def test_each_principal_has_its_own_rate(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of names that would be the same if they were only put together, too."""
    for principal in (Principal("a", "b/c"), Principal("a/b", "c"), Principal("", "a/b/c"), Principal("b/c", "a")):
        _speak_as(client, monkeypatch, principal)
        await _use_up(client)
        await _refused(await client.get(LIST))


@pytest.mark.parametrize("environment", [{"SWARM_RATE_LIMIT": "2 per 2 seconds"}])
async def test_after_retry_after_it_passes_again(client: Client) -> None:
    """However the windows lie: where it does not pass, the clock has been slow, and is told so again."""
    async with asyncio.timeout(30):
        while (answer := await client.get(LIST)).status == 200:
            pass
        seconds = int(answer.headers["Retry-After"])
        assert 1 <= seconds <= 2
        await asyncio.sleep(seconds)
        assert (await client.get(LIST)).status == 200


@pytest.mark.parametrize("environment", [LIMITED])
async def test_a_stream_counts_once_and_one_too_many_is_told_to_come_back_late(client: Client) -> None:
    conversation = await new_conversation(client)
    assert client.port is not None
    path = f"{LIST}/{conversation}/events"
    async with SseReader(client.host, client.port, path) as reader:
        assert reader.answered["ratelimit"].startswith(f'"default";r={LIMIT - 2};')
        await reader.until("ready")
        for _ in range(2):
            assert (await client.get(LIST)).status == 200
        await _refused(await client.get(LIST))
        for refused in (path, "/api/events"):
            async with SseReader(client.host, client.port, refused) as another:
                assert another.status == 200, "an EventSource would never come back from an error"
                assert another.answered["ratelimit"].startswith('"default";r=0;')
                frame = await another.event()
                assert (frame.event, frame.json) == ("drain", {"reason": "limit"})
                retry = (await another.frame()).retry
                seconds = int(another.answered["ratelimit"].partition(";t=")[2])
                assert retry is not None
                assert retry >= seconds * 1_000


async def test_without_a_limit_nothing_is_said_or_counted(client: Client) -> None:
    answer = await client.get(LIST)
    assert LEFT not in answer.headers
    assert POLICY not in answer.headers
    assert not client.app[RATE_LIMITS]._counts._memory.storage


# Of several processes, by Redis.


@pytest.fixture
def redis_environment(sqlite_url: str, own_valkey: ValkeyServer) -> dict[str, str]:
    return {"DATABASE_URL": sqlite_url, "REDIS_URL": own_valkey.url, **LIMITED}


@pytest.fixture
async def two(redis_environment: dict[str, str]) -> AsyncIterator[tuple[Client, Client]]:
    async with serving(redis_environment) as one, serving(redis_environment) as other:
        yield one, other


async def _bypasses(client: Client) -> float:
    return (await read_figures(client)).get(BYPASSES)


async def _until_redis_counts(counts: RateCounts) -> None:
    async with asyncio.timeout(20):
        while counts._waiting is not None:
            await asyncio.sleep(0.01)


async def test_processes_count_together(two: tuple[Client, Client]) -> None:
    for number in range(LIMIT):
        answer = await two[number % 2].get(LIST)
        assert answer.status == 200
        assert _standing(answer)[0] == LIMIT - number - 1
    for client in two:
        await _refused(await client.get(LIST))
        assert await _bypasses(client) == 0


async def test_a_cluster_counts_too(sqlite_url: str, valkey_cluster: ValkeyServer) -> None:
    environment = {"REDIS_URL": valkey_cluster.url, "SWARM_REDIS_CLUSTER": "1", "DATABASE_URL": sqlite_url, **LIMITED}
    async with serving(environment) as one, serving(environment) as other:
        await _use_up(one)
        await _refused(await other.get(LIST))
        assert await _bypasses(one) == await _bypasses(other) == 0


async def test_a_redis_that_is_killed_is_passed_by_and_counted_and_counts_again(
    two: tuple[Client, Client], own_valkey: ValkeyServer
) -> None:
    client, _ = two
    await _use_up(client)
    await _refused(await client.get(LIST))
    await asyncio.to_thread(own_valkey.kill)
    await _use_up(client)  # this process alone has counted nothing yet
    await _refused(await client.get(LIST))
    assert await _bypasses(client) == LIMIT + 1
    await asyncio.to_thread(own_valkey.start)
    await _until_redis_counts(client.app[RATE_LIMITS]._counts)
    await _use_up(client)  # it came back empty
    assert await _bypasses(client) == LIMIT + 1


async def test_a_redis_that_is_not_there_at_the_start_is_found_later(
    redis_environment: dict[str, str], own_valkey: ValkeyServer
) -> None:
    await asyncio.to_thread(own_valkey.kill)
    async with serving(redis_environment) as client:
        assert (await client.get(LIST)).status == 200
        assert await _bypasses(client) == 1
        await asyncio.to_thread(own_valkey.start)
        await _until_redis_counts(client.app[RATE_LIMITS]._counts)
        await _use_up(client)
        assert await _bypasses(client) == 1


async def test_of_a_redis_that_hangs_only_the_requests_that_were_asking_it_notice(
    redis_environment: dict[str, str], own_valkey: ValkeyServer
) -> None:
    async with TcpProxy("127.0.0.1", own_valkey.port) as proxy:
        redis_environment |= {"REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0", "SWARM_RATE_LIMIT": "100000/day"}
        async with serving(redis_environment) as client:
            assert (await client.get(LIST)).status == 200
            assert await _bypasses(client) == 0
            counts = client.app[RATE_LIMITS]._counts
            proxy.hold_server_data()
            connections = proxy.connections
            sent = [asyncio.create_task(client.get(LIST)) for _ in range(100)]
            async with asyncio.timeout(10):
                assert {(await answer).status for answer in sent} == {200}
            assert await _bypasses(client) == 100
            assert proxy.connections - connections <= _AT_ONCE, "who waited for a connection did not ask in vain, too"
            # From now on Redis is asked by nobody but the one who waits for it.
            asked, told = proxy.bytes_from_clients, 0
            assert counts._waiting is not None
            async with asyncio.timeout(10):
                for _ in range(20):
                    assert (await client.get(LIST)).status == 200
                    told += 1
            assert await _bypasses(client) == 100 + told
            assert proxy.bytes_from_clients - asked < 20 * 100
            proxy.release()
            await _until_redis_counts(counts)
            assert (await client.get(LIST)).status == 200
            assert await _bypasses(client) == 100 + told


async def test_the_log_is_told_once_a_minute_that_redis_does_not_count(own_valkey: ValkeyServer) -> None:
    counts = RateCounts(BusConfig(url=own_valkey.url), LimitMetrics(CollectorRegistry()))
    rate = parse_rate("100/day")
    assert rate is not None
    await counts.start()
    with capture_logs() as logs:
        for outage in range(3):
            await asyncio.to_thread(own_valkey.kill)
            assert (await counts.hit(rate, "a")).passes
            await asyncio.to_thread(own_valkey.start)
            await _until_redis_counts(counts)
            if outage == 1:
                counts._told -= 60
    await counts.close()
    assert [line["log_level"] for line in logs if line["log_level"] != "debug"] == ["warning"] * 2


async def test_counts_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.rate_counts._SWEEP", 0.05)
    counts = RateCounts(BusConfig(), LimitMetrics(CollectorRegistry()))
    short, long = parse_rate("5/second"), parse_rate("5/day")
    assert short is not None
    assert long is not None
    await counts.start()
    for number in range(100):
        await counts.hit(short, "a", str(number))
    await counts.hit(long, "a")
    async with asyncio.timeout(10):
        while len(counts._memory.storage) > 1:
            await asyncio.sleep(0.05)
    assert (await counts.hit(long, "a")).remaining == 3
    assert len(counts._memory.locks) == len(counts._memory.expirations) == 1
    await counts.close()


# Refused credentials.


@pytest.fixture
def limits(client: Client) -> RateLimits:
    return client.app[RATE_LIMITS]


REFUSED = {"SWARM_RATE_LIMIT_ADDRESS": f"{LIMIT}/day"}


@pytest.mark.parametrize("environment", [REFUSED])
async def test_after_so_many_refused_credentials_none_from_there_is_looked_at(limits: RateLimits) -> None:
    for _ in range(LIMIT):
        limits.check("192.0.2.1")
        await limits.failed("192.0.2.1")
    with pytest.raises(Problem) as refused:
        limits.check("192.0.2.1")
    assert refused.value.kind.status == 429
    assert 0 < int(refused.value.headers["Retry-After"]) <= 86_400
    limits.check("192.0.2.2")


@pytest.mark.parametrize("environment", [REFUSED])
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
async def test_an_ipv6_network_is_one_client(limits: RateLimits, one: str, other: str, *, same: bool) -> None:
    for _ in range(LIMIT):
        await limits.failed(one)
    if same:
        with pytest.raises(Problem):
            limits.check(other)
    else:
        limits.check(other)


@pytest.mark.parametrize("environment", [{"SWARM_RATE_LIMIT_ADDRESS": "1/second"}])
async def test_the_time_of_refusals_ends_and_leaves_nothing(limits: RateLimits) -> None:
    await limits.failed("192.0.2.1")
    with pytest.raises(Problem):
        limits.check("192.0.2.1")
    async with asyncio.timeout(10):
        while limits._blocked:
            await asyncio.sleep(0.05)
            try:
                limits.check("192.0.2.1")
            except Problem:
                continue


@pytest.mark.parametrize("environment", [{"SWARM_RATE_LIMIT_ADDRESS": "0"}])
async def test_refusals_need_not_be_limited(limits: RateLimits) -> None:
    for _ in range(100):
        await limits.failed("192.0.2.1")
        limits.check("192.0.2.1")


@pytest.mark.parametrize("environment", [REFUSED])
async def test_clients_of_a_unix_socket_have_no_address_to_be_limited_by(limits: RateLimits) -> None:
    for _ in range(LIMIT * 2):
        await limits.failed("")
        limits.check("")


async def test_refusals_count_for_all_processes_together(sqlite_url: str, own_valkey: ValkeyServer) -> None:
    environment = {"DATABASE_URL": sqlite_url, "REDIS_URL": own_valkey.url, **REFUSED}
    async with serving(environment) as one, serving(environment) as other:
        limits, elsewhere = one.app[RATE_LIMITS], other.app[RATE_LIMITS]
        for _ in range(LIMIT):
            await limits.failed("192.0.2.1")
        elsewhere.check("192.0.2.1")
        await elsewhere.failed("192.0.2.1")
        with pytest.raises(Problem):
            elsewhere.check("192.0.2.1")
