"""Limits of rate: of requests, for each principal; of refused credentials, for each client's address."""

from __future__ import annotations

import ipaddress
import math
import time

from aiohttp import web
from msgspec import Struct

from handlers.config import RateConfig
from handlers.kinds import TOO_MANY_REQUESTS
from handlers.problem import Problem
from handlers.rate_counts import RateCounts

# draft-ietf-httpapi-ratelimit-headers-10: what is allowed, and what is left of it.
POLICY = "RateLimit-Policy"
LEFT = "RateLimit"

# One network is one client: whoever has an IPv6 address has 2**64 of them.
_IPV6_NETWORK = 64


class Standing(Struct, frozen=True):
    """Where a principal stands with this request. `wait` is 0 when it is within the rate, else whole seconds."""

    headers: dict[str, str]
    wait: int


STANDING = web.RequestKey("standing", Standing)


class RateLimits:
    def __init__(self, config: RateConfig, counts: RateCounts) -> None:
        self.config = config
        self._counts = counts
        self._blocked: dict[str, float] = {}  # networks, each until when by the monotonic clock

    @property
    def counts_requests(self) -> bool:
        return self.config.requests is not None

    async def count(self, request: web.Request, tenant: str, name: str) -> Standing:
        """Counts the request for its principal, and leaves with it where that stands: every answer says so."""
        rate = self.config.requests
        assert rate is not None
        count = await self._counts.hit(rate, "principal", tenant, name)
        seconds = math.ceil(count.seconds)
        standing = request[STANDING] = Standing(
            {
                POLICY: f'"default";q={rate.amount};w={rate.get_expiry()}',
                LEFT: f'"default";r={count.remaining};t={seconds}',
            },
            0 if count.passes else max(1, seconds),
        )
        return standing

    def check(self, address: str) -> None:
        """To be asked before a credential is looked at. Raises 429 when too many from there were refused lately.

        It costs nothing while none were.
        """
        if not self._blocked:
            return
        network = _network(address)
        until = self._blocked.get(network)
        if until is None:
            return
        seconds = until - time.monotonic()
        if seconds <= 0:
            del self._blocked[network]
            return
        raise too_many(
            "Too many credentials from this address were refused; none is looked at now.", math.ceil(seconds)
        )

    async def failed(self, address: str) -> None:
        """To be told that a credential from there was refused.

        Without an address (a Unix socket) nothing is counted. Other processes find out with the next one that is
        refused there: of what each of them is sent, it looks at one more.
        """
        rate = self.config.refused
        if rate is None or not address:
            return
        network = _network(address)
        count = await self._counts.hit(rate, "address", network)
        if count.remaining == 0:
            now = time.monotonic()
            self._blocked = {name: until for name, until in self._blocked.items() if until > now}
            self._blocked[network] = now + max(1.0, count.seconds)


def too_many(detail: str, seconds: int) -> Problem:
    return Problem(TOO_MANY_REQUESTS, detail, headers={"Retry-After": str(seconds)})


async def say_standing(request: web.Request, response: web.StreamResponse) -> None:
    """A signal handler: what was counted is said by every answer."""
    standing = request.get(STANDING)
    if standing is not None:
        response.headers.update(standing.headers)


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), _IPV6_NETWORK), strict=False))
