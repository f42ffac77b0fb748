"""Who is behind a proxy: the client's address, and the scheme by which it reached the first proxy that is ours.

Anyone can send `X-Forwarded-For` and `X-Forwarded-Proto`. They are believed as far as a proxy of ours has written them:
from the right, and only where the connection itself is a proxy's.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Sequence

from aiohttp.web_request import BaseRequest

from handlers.config import Network

FORWARDED_FOR = "X-Forwarded-For"
FORWARDED_PROTO = "X-Forwarded-Proto"

# Longer than any address with brackets and a port: what is cut off there is none.
_LONGEST = 64
_WITH_PORT = re.compile(r"(?:\[([0-9a-fA-F:.]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5})")


class Proxies:
    """The networks of proxies that are trusted. Without any, the client is who has made the connection."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)
        # The same few proxies, and the same clients, come again and again.
        self._judge = functools.lru_cache(maxsize=4096)(self._judged)

    def address(self, request: BaseRequest) -> str:
        """The client's: of the peer and what it says of those before it, the nearest that is no trusted proxy.

        What cannot be read ends the search: then it is the last trusted one. Empty where the connection has no address.
        """
        peer = request.remote or ""
        if not self._networks:
            return peer
        judged = self._judge(peer)
        if judged is None:
            return peer
        address, trusted = judged
        if trusted:
            hops = ",".join(request.headers.getall(FORWARDED_FOR, ())).split(",")
            for hop in reversed(hops):
                judged = self._judge(hop.strip()[:_LONGEST])
                if judged is None:
                    break
                address, trusted = judged
                if not trusted:
                    break
        return address

    def scheme(self, request: BaseRequest) -> str:
        """`https` or `http`, as the nearest trusted proxy was reached by what it says; else as this server was."""
        if self._networks:
            judged = self._judge(request.remote or "")
            if judged is not None and judged[1]:
                said = ",".join(request.headers.getall(FORWARDED_PROTO, ())).rpartition(",")[2].strip().lower()
                if said in {"http", "https"}:
                    return said
        return request.scheme

    def _judged(self, text: str) -> tuple[str, bool] | None:
        """The address in its usual form, and whether it is a trusted proxy's. None for what is no address."""
        with_port = _WITH_PORT.fullmatch(text)
        if with_port is not None:
            text = with_port[1] or with_port[2]
        if "%" in text:  # a zone, which may be any text
            return None
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return None
        # A socket that listens for both versions shows addresses of the older one so (RFC 4291, 2.5.5.2).
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        address = mapped or address
        return str(address), any(address in network for network in self._networks)
