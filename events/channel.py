"""One watched conversation: its newest frames, and who reads them."""

from __future__ import annotations

from collections import deque

from events.subscriber import Subscriber

# Frames that wait for one before them, at most: what comes beyond is in the database, where the hole is filled from.
_EARLY = 500


class Channel:
    """The ring of one conversation's frames, bounded in bytes, and the subscribers' positions in it.

    The bound is `ring_bytes`, or `backlog_bytes` while live subscribers are still to be given what is in it.

    `last_seq` is the last event heard of; the ring holds `base … last_seq`; up to `floor` the log has no events any
    more, as far as is known. `live` are the subscribers that have all of `flushed`; `behind` are the others, each with
    a position of its own. `beginning` counts how often the channel began to listen: at each, all of that is void.
    """

    __slots__ = (
        "_bytes",
        "_commits",
        "_frames",
        "backlog_bytes",
        "base",
        "beginning",
        "behind",
        "conversation_id",
        "early",
        "ended",
        "filling",
        "floor",
        "flushed",
        "flushed_at",
        "idle_since",
        "last_seq",
        "live",
        "ring_bytes",
        "tenant",
        "urgent",
    )

    def __init__(self, tenant: str, conversation_id: str, ring_bytes: int, backlog_bytes: int) -> None:
        self.tenant = tenant
        self.conversation_id = conversation_id
        self.ring_bytes = ring_bytes
        self.backlog_bytes = backlog_bytes
        self.last_seq = -1  # not known yet
        self.floor = 0
        self.beginning = 0
        self.base = 0
        self.flushed = -1
        self.flushed_at = 0.0  # when its live readers were given something for the last time, in the loop's time
        self.urgent = False  # they lack something else than more of a text
        self.ended = False  # its conversation.deleted has been heard
        self.early: dict[int, tuple[str, bytes, float | None]] = {}  # frames that came before the one they follow
        self.filling = False
        self.idle_since = 0.0
        self.live: dict[Subscriber, None] = {}
        self.behind: dict[Subscriber, None] = {}
        self._frames: list[bytes] = []
        self._bytes = 0
        # Of what live readers are still to be given: seqs, and when each was committed, where that is known.
        self._commits: deque[tuple[int, float]] = deque()

    @property
    def known(self) -> bool:
        return self.last_seq >= 0

    def begin(self, floor: int, head: int) -> None:
        """The log's floor and head when the channel began to listen: what comes next is `head + 1`."""
        self.floor = floor
        self.last_seq = self.flushed = head
        self.base = head + 1

    def forget(self) -> None:
        """What it holds is of another timeline: it listens, and knows nothing until it begins again."""
        self.beginning += 1
        self.last_seq = self.flushed = -1
        self.floor = self.base = 0
        self.ended = False
        self.early.clear()
        self._commits.clear()
        self._frames.clear()
        self._bytes = 0
        for subscriber in self.live:
            self.behind[subscriber] = None
        self.live.clear()

    def raise_floor(self, floor: int) -> None:
        """The log has lost its events up to `floor`: the ring serves nobody who lacks any of them, either.

        A reader can be in the middle of a replay of state there: the events that follow its place are about messages
        that it was not given yet.
        """
        self.floor = max(self.floor, floor)
        dropped = min(self.floor + 1 - self.base, len(self._frames))
        if dropped > 0:
            self._bytes -= sum(map(len, self._frames[:dropped]))
            del self._frames[:dropped]
            self.base += dropped

    def hear(self, seq: int, kind: str, frame: bytes, committed_at: float | None = None) -> bool:
        """Takes a frame in if it is the next one; keeps it for later if it is early; drops what is known.

        True when the ring has grown. `committed_at` is in `time.monotonic()`'s seconds, None where it is not known.
        """
        if not self.known or seq > self.last_seq + 1:
            if len(self.early) < _EARLY:
                self.early[seq] = (kind, frame, committed_at)
            return False
        if seq <= self.last_seq:
            return False
        self._append(seq, kind, frame, committed_at)
        self._take_early()
        return True

    def skip(self, floor: int) -> None:
        """The log has lost its events up to `floor`: whoever lacks them reads there what is left."""
        self._frames.clear()
        self._bytes = 0
        self.floor = self.last_seq = floor
        self.base = floor + 1
        self._take_early()  # what they waited for will not come any more

    def _take_early(self) -> None:
        """Takes in the early frames whose turn it is now, and drops those whose turn is over."""
        while (following := self.early.pop(self.last_seq + 1, None)) is not None:
            self._append(self.last_seq + 1, *following)
        if self.early and min(self.early) <= self.last_seq:
            self.early = {key: value for key, value in self.early.items() if key > self.last_seq}

    def _append(self, seq: int, kind: str, frame: bytes, committed_at: float | None) -> None:
        if kind == "message.deleted":
            # Earlier frames may show the text that is gone: whoever lacks them reads the log, which no longer does.
            self._frames.clear()
            self._bytes = 0
            self.base = seq
        elif kind == "conversation.deleted":
            self.ended = True
        if kind != "message.delta":
            self.urgent = True
        if self.live and committed_at is not None:
            self._commits.append((seq, committed_at))
        self._frames.append(frame)
        self._bytes += len(frame)
        self.last_seq = seq
        if self._bytes > self.ring_bytes:
            self._trim()

    def _trim(self) -> None:
        # Down to three quarters at once: taking single frames off the front of a list would move the rest each time.
        # The newest frame stays, however large; so does what the live ones are about to be given, within its own bound:
        # otherwise every burst would send all of them to the log.
        keep = self.ring_bytes * 3 // 4
        last = len(self._frames) - 1
        if self.live and self._bytes <= self.backlog_bytes:
            last = min(last, self.flushed + 1 - self.base)
        dropped = 0
        while self._bytes > keep and dropped < last:
            self._bytes -= len(self._frames[dropped])
            dropped += 1
        del self._frames[:dropped]
        self.base += dropped

    def holds(self, position: int) -> bool:
        """Whether all that a reader at `position` lacks is in the ring."""
        return position >= self.base - 1

    def frames(self, position: int, limit: int, until: int | None = None) -> list[bytes]:
        """What a reader at `position` lacks: at most `limit` bytes or one frame, up to seq `until`."""
        start = position + 1 - self.base
        stop = len(self._frames) if until is None else min(len(self._frames), until + 1 - self.base)
        frames = self._frames[start:stop]
        size = 0
        for index, frame in enumerate(frames):
            size += len(frame)
            if size > limit and index:
                del frames[index:]
                break
        return frames

    def flush(self, seq: int) -> float | None:
        """The live ones have all up to `seq` now. Returns when the oldest of what that was new was committed."""
        self.flushed = seq
        if seq >= self.last_seq:
            self.urgent = False
        commits, oldest = self._commits, None
        while commits and commits[0][0] <= seq:
            _, at = commits.popleft()
            oldest = at if oldest is None else min(oldest, at)
        return oldest

    def settle(self, subscriber: Subscriber) -> None:
        """The subscriber has all of `flushed`: it goes with the others."""
        self.behind.pop(subscriber, None)
        self.live[subscriber] = None

    def part(self, subscriber: Subscriber) -> None:
        """The subscriber takes nothing for now: it has all of `flushed`, and goes on at its own pace."""
        subscriber.position = self.flushed
        self.live.pop(subscriber, None)
        self.behind[subscriber] = None

    @property
    def empty(self) -> bool:
        return not self.live and not self.behind
