"""Says in the log which database operations were slow."""

from __future__ import annotations

import structlog

log = structlog.get_logger(__name__)


class SlowOperations:
    """An `OperationObserver` that logs each operation of `threshold` seconds or more."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def observe(self, operation: str, seconds: float, error: str | None) -> None:
        if seconds >= self._threshold:
            log.warning("slow database operation", operation=operation, seconds=round(seconds, 3), error=error)
