"""What reading requests needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class RequestConfig:
    """Sizes in bytes, times in seconds."""

    max_body: int = 8 * 1024 * 1024
    head_timeout: float = 10.0  # a request's head is whole by then, or its connection is closed
    body_timeout: float = 30.0  # so is a JSON body, and each next line of an import
