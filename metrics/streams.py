"""How streams begin, what they are given, and how late."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

StreamKind = Literal["conversation", "several"]
Source = Literal["live", "ring", "events", "state"]
Outcome = Literal["live", "ring", "events", "state", "reset"]
Finding = Literal["early", "comparison"]

# Two of the bounds are what is promised: 250 ms between processes without Redis, 2 s when it is lost.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)


class StreamMetrics:
    """Told once for many readers wherever there are many: what is done for each of them must be almost nothing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        opened = Gauge(
            "swarm_streams_open",
            "Streams that are open: of one conversation, or of several and the feed.",
            ["kind"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        delivered = Counter(
            "swarm_events_delivered_total",
            "Events given to readers, counted for each of them, by where they were read.",
            ["source"],
            registry=registry,
        )
        self._lag = Histogram(
            "swarm_delivery_lag_seconds",
            "From a commit until all live readers of its conversation have it, of the oldest event in a write.",
            registry=registry,
            buckets=_BUCKETS,
        )
        repaired = Counter(
            "swarm_doorbell_gaps_repaired_total",
            "Times that events were read from the database because no commit and no message told of them.",
            ["found_by"],
            registry=registry,
        )
        resumes = Counter(
            "swarm_stream_resumes_total",
            "Readers' places in conversations, by what brought each up to date.",
            ["outcome"],
            registry=registry,
        )
        # Made now, so that each is there at zero: what begins at one has no increase that anybody could see.
        kinds: tuple[StreamKind, ...] = ("conversation", "several")
        sources: tuple[Source, ...] = ("live", "ring", "events", "state")
        outcomes: tuple[Outcome, ...] = ("live", "ring", "events", "state", "reset")
        findings: tuple[Finding, ...] = ("early", "comparison")
        self._open = {kind: opened.labels(kind) for kind in kinds}
        self._delivered = {source: delivered.labels(source) for source in sources}
        self._resumes = {outcome: resumes.labels(outcome) for outcome in outcomes}
        self._repaired = {finding: repaired.labels(finding) for finding in findings}

    def opened(self, kind: StreamKind) -> None:
        self._open[kind].inc()

    def closed(self, kind: StreamKind) -> None:
        self._open[kind].dec()

    def delivered(self, source: Source, events: int) -> None:
        """`events` is a product: so many events, to so many readers."""
        if events:
            self._delivered[source].inc(events)

    def lagged(self, seconds: float) -> None:
        """All live readers of a conversation were given what was committed up to `seconds` ago."""
        self._lag.observe(max(0.0, seconds))

    def repaired(self, found_by: Finding) -> None:
        """Events came from the database that nothing had told of: noticed by a later event, or by comparing."""
        self._repaired[found_by].inc()

    def resumed(self, outcome: Outcome) -> None:
        """A reader has a place in a conversation, and this is what it took.

        `live`: it lacked nothing. `ring`: memory held what it lacked. `events`, `state`: the database was asked for
        events, or for what has changed. `reset`: what it held is of another timeline.
        """
        self._resumes[outcome].inc()
