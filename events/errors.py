"""What the meaning of a message forbids, whatever storage could do."""

from __future__ import annotations


class MessageConflict(Exception):
    """The message is in a state in which this cannot be done to it."""


class StillStreaming(MessageConflict):
    """A message that streams cannot be edited: its text is not there yet."""


class DeltaRefused(MessageConflict):
    """A delta does not continue the text that is there: `length` UTF-16 code units of a message in that status."""

    def __init__(self, length: int, status: str) -> None:
        super().__init__(f"the message is {status} and has {length} UTF-16 code units")
        self.length = length
        self.status = status


class NotStreaming(MessageConflict):
    """A message that does not stream (any more) cannot be finished in another way than it is."""

    def __init__(self, status: str) -> None:
        super().__init__(f"the message is {status}")
        self.status = status
