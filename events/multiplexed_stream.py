"""The stream of several conversations, of the tenant's feed, or of both: one connection for all that a page shows."""

from __future__ import annotations

from collections.abc import Sequence

from events.event_id import NOWHERE, EventId
from events.frame import PIECE_BYTES, cursor_frame, feed_ready_frame, gone_frame, many_ready_frame, many_reset_frame
from events.owner import Owner
from events.stream import Keeper, Stream
from events.subscriber import Subscriber
from metrics.streams import StreamKind


class MultiplexedStream(Stream):
    """Its frames carry no id, so that their bytes are everybody's; each write ends with a `cursor`, whose id is the
    vector of seqs in the order of the request.

    What becomes ready in one turn of the pump is collected and written together, at most about `slice_bytes`.
    """

    __slots__ = ("_bare", "_collected", "_feed", "_missed", "_places", "_size", "_slice_bytes", "_unready")

    numbered = False
    kind: StreamKind = "several"

    def __init__(self, keeper: Keeper, owner: Owner, *, chunked: bool, feed: bool, slice_bytes: int) -> None:
        super().__init__(keeper, owner, chunked=chunked)
        # A conversation that is not there keeps its place in the vector, at the seq that was asked for.
        self._places: list[Subscriber | EventId] = []
        self._unready = 0
        self._feed = feed
        self._missed = False
        self._collected: list[bytes] = []
        self._size = 0
        self._bare = 0  # bytes since the last cursor
        self._slice_bytes = slice_bytes

    def follow(self, places: Sequence[Subscriber | EventId]) -> None:
        """The conversations, in the order of the request; an id stands for one that is not there."""
        self._places = list(places)
        self._unready = len(self.subscribers)
        if not self._unready:
            self._ready()

    @property
    def follows_feed(self) -> bool:
        return self._feed

    @property
    def subscribers(self) -> list[Subscriber]:
        return [place for place in self._places if isinstance(place, Subscriber)]

    @property
    def full(self) -> bool:
        return self.paused or self._size >= self._slice_bytes

    def give(self, data: bytes) -> None:
        if self.transport is None:
            return
        if not self._collected:
            self.keeper.collected(self)
        self._collected.append(data)
        self._size += len(data)
        self._bare += len(data)
        if self._bare >= PIECE_BYTES:
            self._tell_cursor()

    def flush(self) -> None:
        if not self._collected:
            return
        if self._bare:
            self._tell_cursor()
        data = b"".join(self._collected)
        self._collected.clear()
        self._size = 0
        self.write(data)
        self._release()

    def _tell_cursor(self) -> None:
        # All that was given is before it, so this is where its reader stands: unless that is void, as it will be told.
        self._bare = 0
        if self._places and not self._void:
            self._collected.append(cursor_frame(self._vector(), self.keeper.epoch))

    def tell(self, frame: bytes) -> None:
        """A frame of the feed. One that finds the stream full is left out, and made up for by another `ready`."""
        if self.full:
            self._missed = True
        else:
            self.give(frame)

    def renew(self) -> None:
        """Tells a reader of the feed to read its lists again, now or as soon as it takes anything."""
        self._missed = True
        self.make_up()

    def make_up(self) -> None:
        if self._missed and not self.full and not self._unready and not self._void:
            self._ready()

    def reached(self, subscriber: Subscriber) -> None:
        self._unready -= 1
        if not self._unready:
            if self._void:
                self._missed = True  # told when its places are of the new timeline, or have gone with the old one
            else:
                self._ready()

    def ended(self, subscriber: Subscriber) -> None:
        self._leave_out(subscriber)

    def vanished(self, subscriber: Subscriber) -> None:
        self.give(gone_frame(subscriber.channel.conversation_id))
        self._leave_out(subscriber)

    def reset(self, subscriber: Subscriber, reason: str) -> None:
        self.give(many_reset_frame(reason, {subscriber.channel.conversation_id: subscriber.position}))
        self._unready = sum(place.ready_at is not None for place in self.subscribers)

    def _leave_out(self, subscriber: Subscriber) -> None:
        epoch = self.keeper.epoch if subscriber.beginning == subscriber.channel.beginning else ""
        self._places[self._places.index(subscriber)] = EventId(subscriber.position, epoch)
        self.keeper.left(subscriber)
        if subscriber.ready_at is not None:
            subscriber.ready_at = None
            self.reached(subscriber)
        else:
            self.make_up()

    @property
    def _void(self) -> bool:
        """Whether its places are of a timeline that has ended: under the new epoch they would mean something else."""
        return any(subscriber.beginning != subscriber.channel.beginning for subscriber in self.subscribers)

    def _vector(self) -> list[int]:
        return [place.position if isinstance(place, Subscriber) else self._left_at(place) for place in self._places]

    def _left_at(self, place: EventId) -> int:
        # A conversation that is not there may be there in a later timeline, where this seq would look valid.
        return place.seq if place.epoch == self.keeper.epoch else NOWHERE

    def _ready(self) -> None:
        self._missed = False
        if self._places:
            as_of = {place.channel.conversation_id: place.position for place in self.subscribers}
            self.give(many_ready_frame(as_of, self._vector(), self.keeper.epoch))
        else:
            self.give(feed_ready_frame())
