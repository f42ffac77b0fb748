"""Who is behind a proxy, as far as it can be believed."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from structlog.testing import capture_logs

from handlers.proxies import Proxies
from handlers.resources import HUB
from tests.api import Client
from tests.sse_reader import SseReader

OURS = ("10.0.0.0/8", "192.0.2.7/32", "2001:db8:1::/48")


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One of the two: nothing here depends on which."""
    return sqlite_url


def asked(peer: str, *forwarded: str, proto: Sequence[str] = ()) -> Any:
    fields = [("X-Forwarded-For", value) for value in forwarded] + [("X-Forwarded-Proto", value) for value in proto]
    return make_mocked_request("GET", "/", headers=CIMultiDict(fields)).clone(remote=peer)


def proxies(*networks: str) -> Proxies:
    return Proxies([ipaddress.ip_network(network) for network in networks])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # no proxy of ours: it may say what it likes
        ("203.0.113.9", [], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),  # the client has made up the first
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1,192.0.2.7 ,\t10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1", "10.0.0.2"], "198.51.100.1"),  # lines are one list
        ("10.0.0.1", ["198.51.100.1, 10.0.0.3", "10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # from within
        ("10.0.0.1", ["198.51.100.1:5555"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:5555"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("10.0.0.1", ["198.51.100.1, [2001:db8:1::5]:80"], "198.51.100.1"),
        ("2001:db8:1::9", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, garbage, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1,"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:port"], "10.0.0.1"),
        ("10.0.0.1", ["[198.51.100.1"], "10.0.0.1"),
        ("10.0.0.1", ["fe80::1%\x1b[31m"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4" + "0" * 100], "10.0.0.1"),
        ("10.0.0.1", ["0x7f000001"], "10.0.0.1"),
        ("10.0.0.1", ["١.1.1.1"], "10.0.0.1"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_client_is_the_nearest_that_is_no_proxy_of_ours(peer: str, forwarded: list[str], client: str) -> None:
    assert proxies(*OURS).address(asked(peer, *forwarded)) == client


def test_without_proxies_nobody_is_believed() -> None:
    request = asked("10.0.0.1", "198.51.100.1", proto=["https"])
    assert (proxies().address(request), proxies().scheme(request)) == ("10.0.0.1", "http")


@pytest.mark.parametrize(
    ("peer", "proto", "scheme"),
    [
        ("10.0.0.1", ["https"], "https"),
        ("10.0.0.1", ["HTTPS"], "https"),
        ("10.0.0.1", ["http"], "http"),
        ("10.0.0.1", [], "http"),
        ("10.0.0.1", ["http, https"], "https"),
        ("10.0.0.1", ["https", "http"], "http"),  # what is before was sent by whoever
        ("10.0.0.1", ["gopher"], "http"),
        ("203.0.113.9", ["https"], "http"),
        ("", ["https"], "http"),
    ],
)
def test_the_scheme_is_what_the_nearest_proxy_of_ours_says(peer: str, proto: list[str], scheme: str) -> None:
    assert proxies(*OURS).scheme(asked(peer, proto=proto)) == scheme


@pytest.mark.parametrize("environment", [{"SWARM_TRUSTED_PROXIES": "127.0.0.0/8", "SWARM_STREAMS_PER_ADDRESS": "1"}])
async def test_streams_are_counted_for_the_client_behind_the_proxy(client: Client) -> None:
    def opened(address: str) -> SseReader:
        assert client.port is not None
        return SseReader(client.host, client.port, "/api/events", {"X-Forwarded-For": address})

    async with opened("198.51.100.1") as one, opened("198.51.100.2") as two, opened("6.6.6.6, 198.51.100.1") as again:
        assert (await one.event()).event == "ready"
        assert (await two.event()).event == "ready"
        assert (await again.event()).event == "drain"
        assert set(client.app[HUB]._streams.by_address._counts) == {"198.51.100.1", "198.51.100.2"}


@pytest.mark.parametrize(
    ("environment", "peer"),
    [({"SWARM_TRUSTED_PROXIES": "127.0.0.1"}, "198.51.100.1"), ({}, "127.0.0.1")],
    ids=["proxy", "anybody"],
)
async def test_the_log_names_the_client_behind_the_proxy(client: Client, peer: str) -> None:
    with capture_logs() as lines:
        await client.get("/health/live", headers={"X-Forwarded-For": "198.51.100.1"})
        async with asyncio.timeout(10):
            while not lines:
                await asyncio.sleep(0)
    assert [line["peer"] for line in lines] == [peer]
