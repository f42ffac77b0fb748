"""What reading requests needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from handlers.rate import Rate

# Every answer and every frame that brings a message carries its whole text. An operator can allow less.
CONTENT_BYTES = 1024 * 1024

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class RequestConfig:
    """Sizes in bytes, times in seconds."""

    max_body: int = 8 * 1024 * 1024
    max_content: int = CONTENT_BYTES  # of one that comes in deltas: UTF-16 code units
    max_depth: int = 32  # of free-form JSON
    head_timeout: float = 10.0  # a request's head is whole by then, or its connection is closed
    body_timeout: float = 30.0  # so is a JSON body, and each next line of an import


@dataclass(frozen=True)
class RateConfig:
    """What happens more often than this is refused; None: there is no limit."""

    refused: Rate | None  # credentials from one address
    requests: Rate | None = None  # of one principal


@dataclass(frozen=True)
class LivesConfig:
    """How long what is given to browsers is good, in seconds."""

    session_life: float = 12 * 3_600.0  # unused for so long, it ends
    session_most: float = 30 * 86_400.0  # and after so long in any case
    ticket_life: float = 120.0
