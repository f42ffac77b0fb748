"""How long requests take."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram

# RFC 9110, 9.3, and RFC 5789; a client may send any other word (OpenTelemetry's conventions fold those, too).
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
OTHER_METHOD = "_OTHER"
# What no route has answered: a path that is none, a method that its path does not have, what the parser refused.
NO_ROUTE = "_NONE"

# From a cached answer to the longest waits that are bounded: for the commit queue, and for a body.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class RequestMetrics:
    """Times requests by method, route and status, each from a set that is bounded by the code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._duration = Histogram(
            "http_server_request_duration_seconds",
            "From a request's head to the end of its answer; of a stream to the end of the answer's head.",
            ["http_request_method", "http_route", "http_response_status_code"],
            registry=registry,
            buckets=_BUCKETS,
        )
        # By label values: the library would turn them to text and take a lock each time.
        self._series: dict[tuple[str, str | None, int], Histogram] = {}

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """`route` is the template of the route that answered, None where there is none."""
        if method not in _METHODS:
            method = OTHER_METHOD
        key = (method, route, status)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = self._duration.labels(method, route or NO_ROUTE, status)
        series.observe(seconds)
