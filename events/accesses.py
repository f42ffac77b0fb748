"""By what streams are open, and their end when that is good no more: revoked, in whichever process, or expired."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from events.bus import Bus
from events.owner import Access
from events.stream import Stream

TOPIC = "revoked"  # of the bus: ids, separated by blanks. A conversation's or a feed's has a slash in it.

# Streams that were on their way when their credential ended are ended when they come.
_REMEMBERED = 1_000

REASON = "unauthorized"


class Accesses:
    """`streams` are those that are open."""

    def __init__(self, streams: Iterable[Stream], bus: Bus) -> None:
        self._streams = streams
        self._bus = bus
        self._lately: deque[str] = deque(maxlen=_REMEMBERED)
        self.listener: Callable[[list[str]], None] | None = None  # is told what another process has revoked

    def revoked(self, ids: list[str]) -> None:
        """This process has revoked these credentials: their streams end here, and elsewhere when the bus rings."""
        if not ids:
            return
        self.end(ids)
        if self._bus.live:
            self._bus.publish(TOPIC, " ".join(ids).encode() + b" ")

    def heard(self, data: bytes) -> None:
        """Another process has. What was not heard is found when the credentials are looked at again."""
        ids = data.decode().split()
        self.end(ids)
        if self.listener is not None:
            self.listener(ids)

    def end(self, ids: list[str]) -> None:
        """Ends the streams that were opened by these."""
        gone = set(ids)
        self._lately.extend(ids)
        for stream in list(self._streams):
            if stream.owner.access.credential in gone:
                stream.drain(REASON)

    def good(self, access: Access) -> bool:
        """Whether nothing else has been heard of it."""
        return not access.credential or access.credential not in self._lately

    def look(self, now: float) -> list[str]:
        """Ends the streams whose access has expired at that Unix time; returns the credentials of the others."""
        ids: set[str] = set()
        for stream in list(self._streams):
            access = stream.owner.access
            if access.expires is not None and access.expires <= now:
                stream.drain(REASON)
            elif access.credential:
                ids.add(access.credential)
        return sorted(ids)
