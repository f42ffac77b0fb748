"""How often a window is served from memory, and how much of it they take."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

Outcome = Literal["hit", "miss", "stale"]


class CacheMetrics:
    """Of the windows that a process keeps."""

    def __init__(self, registry: CollectorRegistry) -> None:
        reads = Counter(
            "swarm_cache_reads_total",
            "Windows that were asked for, by whether memory had them.",
            ["outcome"],
            registry=registry,
        )
        self.bytes = Gauge(
            "swarm_cache_bytes",
            "About what the windows in memory take.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        # Made now, so that each is there at zero: what begins at one has no increase that anybody could see.
        outcomes: tuple[Outcome, ...] = ("hit", "miss", "stale")
        self._reads = {outcome: reads.labels(outcome) for outcome in outcomes}

    def read(self, outcome: Outcome) -> None:
        """`hit`: memory had it, as it is now. `miss`: it had not. `stale`: the conversation has changed since."""
        self._reads[outcome].inc()
