"""Networks as an operator lists them."""

from __future__ import annotations

import ipaddress

from handlers.config import Network


def parse_networks(text: str) -> tuple[Network, ...]:
    """The networks, and single addresses, in a comma-separated list. Raises `ValueError`."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",")) if text else ()
