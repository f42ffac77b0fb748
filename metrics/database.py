"""How long database operations take, which fail, and how busy the pool is."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From a read of what is in memory to the bound on one statement.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class DatabaseMetrics:
    """An `OperationObserver`, and gauges of the pool that somebody else sets.

    The names of operations, and the classes of errors, come from code: their number is bounded.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._duration = Histogram(
            "db_client_operation_duration_seconds",
            "Of a database operation, with its wait for a connection.",
            ["db_operation_name"],
            registry=registry,
            buckets=_BUCKETS,
        )
        self._failures = Counter(
            "db_client_operation_failures_total",
            "Database operations that an error ended.",
            ["db_operation_name", "error_type"],
            registry=registry,
        )
        connections = Gauge(
            "db_client_connections",
            "Connections of the pool.",
            ["state"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.used, self.idle = connections.labels("used"), connections.labels("idle")
        self.limit = Gauge(
            "db_client_connections_max",
            "Connections that the pool holds at most.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._series: dict[str, Histogram] = {}

    def observe(self, operation: str, seconds: float, error: str | None) -> None:
        series = self._series.get(operation)
        if series is None:
            series = self._series[operation] = self._duration.labels(operation)
        series.observe(seconds)
        if error is not None:
            self._failures.labels(operation, error).inc()
