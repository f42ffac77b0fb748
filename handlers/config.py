"""What reading requests needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from handlers.rate import Rate

# Every answer and every frame that brings a message carries its whole text. An operator can allow less.
CONTENT_BYTES = 1024 * 1024


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
