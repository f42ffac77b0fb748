"""How often a limit was kept by one process alone."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class LimitMetrics:
    """Of what is counted for limits of rate."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._bypasses = Counter(
            "swarm_rate_limit_bypasses_total",
            "What a process counted by itself for a limit of rate, because Redis could not.",
            registry=registry,
        )

    def bypassed(self) -> None:
        self._bypasses.inc()
