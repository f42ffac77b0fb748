"""The stream of one conversation: each frame carries the id from which a reader resumes."""

from __future__ import annotations

from events.channel import Channel
from events.frame import ready_frame, reset_frame
from events.owner import Owner
from events.stream import Keeper, Stream
from events.subscriber import Subscriber


class ConversationStream(Stream):
    """It ends with its conversation."""

    __slots__ = ("_subscriber",)

    def __init__(self, keeper: Keeper, owner: Owner, channel: Channel, position: int, *, chunked: bool) -> None:
        super().__init__(keeper, owner, chunked=chunked)
        self._subscriber = Subscriber(self, channel, position)

    @property
    def subscribers(self) -> list[Subscriber]:
        return [self._subscriber]

    def give(self, data: bytes) -> None:
        self.write(data)

    def reached(self, subscriber: Subscriber) -> None:
        self.write(ready_frame(subscriber.position, self.keeper.epoch))

    def ended(self, subscriber: Subscriber) -> None:
        self.finish()

    def vanished(self, subscriber: Subscriber) -> None:
        self.drain("gone")

    def reset(self, subscriber: Subscriber, reason: str) -> None:
        self.write(reset_frame(reason, subscriber.position))
