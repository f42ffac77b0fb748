"""The pulse: one task that wakes at regular times, measures how late, and takes the figures that nobody reports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog
from prometheus_client import Gauge

from metrics.memory import ResidentMemory
from metrics.process import ProcessMetrics

log = structlog.get_logger(__name__)

# Often enough that a loop which stands still again and again is met, and a gauge is never older than a scrape notices.
INTERVAL = 0.25


class Pulse:
    """Sets each gauge to what its function gives, `interval` seconds apart.

    Where processes share their figures, one that answers a scrape can ask no other how it is: each leaves its figures
    in time.
    """

    def __init__(
        self,
        metrics: ProcessMetrics,
        gauges: Sequence[tuple[Gauge, Callable[[], float]]],
        interval: float = INTERVAL,
    ) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._interval = interval
        self._memory = ResidentMemory()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._take()
        self._task = asyncio.create_task(self._run(), name="pulse")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._memory.close()

    async def _run(self) -> None:
        while True:
            # Not the loop's own clock: some loops look at it once a turn, and would find themselves punctual.
            due = time.monotonic() + self._interval
            await asyncio.sleep(self._interval)
            self._metrics.woke(max(0.0, time.monotonic() - due))
            try:
                self._take()
            except Exception:
                log.exception("figures were not taken")  # the next beat comes all the same

    def _take(self) -> None:
        for gauge, read in self._gauges:
            gauge.set(read())
        memory = self._memory.read()
        if memory is not None:
            self._metrics.memory.set(memory)
