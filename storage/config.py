"""What storage needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from storage.url import DatabaseUrl


@dataclass(frozen=True)
class StorageConfig:
    """Times are in seconds."""

    url: DatabaseUrl
    pool_size: int = 5
    pool_timeout: float = 5.0  # how long an operation waits for a connection: beyond it, it is refused
    connect_timeout: float = 5.0
    command_timeout: float = 10.0  # how long one statement may take
    pre_ping: bool = True  # a connection that has rested is tried before it is used
    cache_bytes: int = 32 * 1024 * 1024  # what windows kept in memory may take; 0: none is kept
    pgbouncer: bool = False  # behind pgbouncer in transaction mode: no prepared statement outlives its transaction


@dataclass(frozen=True)
class CommitConfig:
    """Bounds of the group commit: what they protect is memory and the time that others wait."""

    committers: int = 3  # groups in flight on PostgreSQL; SQLite has one writer
    group_rows: int = 2_000  # messages and events in one transaction
    group_bytes: int = 4 * 1024 * 1024
    # Seconds. A commit that takes no longer leaves all that comes meanwhile to the next group: one group of 64 costs
    # much less than three of 21. One that takes longer is joined by another: the database or the network is slow.
    headway: float = 0.005
    delta_gap: float = 0.01  # seconds that deltas of several messages of one conversation wait for others
    queue_appends: int = 20_000  # beyond: 503
    queue_bytes: int = 64 * 1024 * 1024
    queue_seconds: float = 10.0  # an append that waits longer is withdrawn: 503
