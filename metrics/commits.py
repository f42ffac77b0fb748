"""How well appends are committed together."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram

# Up to the rows that one transaction holds at most by default.
_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)


class CommitMetrics:
    """Of the groups that are committed, and the queue that they are taken from, which somebody else measures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._group = Histogram(
            "swarm_commit_group_appends",
            "Appends that one transaction has committed together.",
            registry=registry,
            buckets=_BUCKETS,
        )
        self.queue = Gauge(
            "swarm_commit_queue_appends",
            "Appends that wait for a transaction.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def committed(self, appends: int) -> None:
        self._group.observe(appends)
