"""How the process is: whether its loop turns in time, and the memory it takes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram

# From a timer's own resolution to what would let health checks fail.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class ProcessMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "swarm_event_loop_lag_seconds",
            "How late a timer of the event loop comes.",
            registry=registry,
            buckets=_BUCKETS,
        )
        self.memory = Gauge(
            "process_resident_memory_bytes",
            "Resident memory, pages that processes share counted in each.",
            registry=registry,
            multiprocess_mode="livesum",
        )

        self.tasks = Gauge(
            "swarm_event_loop_tasks",
            "Tasks of the event loop that have not ended.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def woke(self, late: float) -> None:
        """A timer came `late` seconds after its time."""
        self._lag.observe(late)
