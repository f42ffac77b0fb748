"""Requests that showed no credential, or no good one."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter

Reason = Literal["missing", "invalid"]


class AuthenticationMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._refused = Counter(
            "swarm_authentications_refused_total",
            "Requests that were refused because they showed no credential, or one that is not good.",
            ["reason"],
            registry=registry,
        )
        for reason in ("missing", "invalid"):
            self._refused.labels(reason)

    def refused(self, reason: Reason) -> None:
        self._refused.labels(reason).inc()
