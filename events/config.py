"""What streaming needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StreamConfig:
    """Times in seconds, sizes in bytes."""

    ring_bytes: int = 512 * 1024  # frames that a watched conversation keeps for readers a little behind
    backlog_bytes: int = 8 * 1024 * 1024  # frames that live readers are still to be given; beyond, they read the log
    slice_bytes: int = 64 * 1024  # what one reader is given at a time: bounds its buffer
    gap: float = 0.002  # a hub joins what becomes ready this long after the end of its last flush
    busy_gap: float = 0.005  # the same after a flush of many events: more will be ready
    delta_gap: float = 0.04  # the same for more of a text, of one conversation: tokens of many agents are read together
    turn: float = 0.002  # how long the pump works before it lets others run
    ping: int = 15  # a whole number
    send_timeout: float = 30.0  # a reader that takes nothing for so long is aborted
    retry: float = 1.0  # a reader that was cut waits so long before it comes back, and up to three times that
    opening: float = 5.0  # how long a reader waits for a conversation that others are opening
    linger: float = 30.0  # a conversation that nobody watches is kept this long, for who reconnects
    compare: float = 0.2  # between two comparisons with the database, at most, where no doorbell rings
    compare_rung: float = 1.0  # where one does: what it lost is found by then
    early: float = 0.02  # how long a frame may wait for the one before it
    page_events: int = 500
    page_chars: int = 64 * 1024
    idle: float = 300.0  # a streaming message that gets no delta for so long becomes failed
    feed: float = 0.2  # what changes in a tenant's lists in so many seconds is told together
    streams: int = 20_000  # of this process; one more is told to come back
    streams_per_address: int = 0  # of one client's address; 0: no limit
    streams_per_principal: int = 0  # the same of one principal


@dataclass(frozen=True)
class BusConfig:
    """Times in seconds, sizes in bytes."""

    url: str | None = field(default=None, repr=False)  # it may hold a password; None: there is no bus
    cluster: bool = False  # a Redis Cluster, with sharded pub/sub
    timeout: float = 1.0  # of connecting and of each exchange: beyond, Redis counts as away
    silence: float = 3.0  # after which a connection that says nothing is asked whether it is there
    pause: float = 0.5  # between attempts, at most
    queue_bytes: int = 8 * 1024 * 1024  # frames that wait to be published; beyond, they are dropped
    message_bytes: int = 128 * 1024  # a larger one is a knock: Redis must not hold for slow processes what is stored
