"""A subscriber: the place of one stream in one conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from events.channel import Channel
    from events.stream import Stream


class Subscriber:
    """Where a stream stands in a channel.

    `position` is the seq from which its reader can resume: of the last event that it was given, unless the channel
    counts it among its live ones, which all stand at `flushed`. `ready_at` is the seq up to which it must be given
    everything before `ready`, None once it was. `counted` says that it has been counted how it began.
    """

    __slots__ = ("beginning", "catching_up", "channel", "counted", "left", "position", "ready_at", "stream")

    def __init__(self, stream: Stream, channel: Channel, position: int, beginning: int | None = None) -> None:
        self.stream = stream
        self.channel = channel
        self.position = position
        self.ready_at: int | None = max(position, channel.last_seq)
        self.beginning = channel.beginning if beginning is None else beginning  # of which its position is
        self.catching_up = False
        self.left = False
        self.counted = False

    @property
    def gone(self) -> bool:
        """Whether nobody is left to give anything to."""
        return self.left or self.stream.gone

    def give(self, data: bytes, position: int) -> None:
        """Whole frames, after which its reader can resume at `position`; `ready` follows where it belongs."""
        self.position = position
        if data:
            self.stream.give(data)
        if self.ready_at is not None and position >= self.ready_at:
            self.ready_at = None
            self.stream.reached(self)

    def rewind(self, position: int, reason: str) -> None:
        """What its reader holds is void: it is told so, and goes on after `position`."""
        self.position = self.ready_at = position
        self.beginning = self.channel.beginning
        self.stream.reset(self, reason)
