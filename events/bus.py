"""The bus between processes: a doorbell, never the truth.

Whoever commits rings it with the frames of what was committed; hubs of other processes that watch the conversation hear
them. Nothing depends on it: what was not heard is found by comparing with the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Listener(Protocol):
    """Who hears what other processes ring: the hub."""

    def heard(self, topic: str, data: bytes, age: float) -> None:
        """What one of them has published, in its order, `age` seconds ago by the clocks of both."""

    def listening(self, topic: str) -> None:
        """From now on this topic is heard. What was published before may have been missed."""


class Bus(Protocol):
    """Topics are of one timeline: under another epoch they have other names. No call blocks, and none fails."""

    @property
    def live(self) -> bool:
        """Whether what others publish is heard, as far as is known."""

    @property
    def state(self) -> str:
        """`connected`, `off`, or why it is neither."""

    async def start(self, listener: Listener) -> None:
        """Begins to connect. Never raises because it cannot."""

    async def close(self) -> None: ...

    def begin(self, epoch: str) -> None:
        """The timeline is another one: no topic is listened to until `subscribe` names it again."""

    def subscribe(self, topics: Iterable[str]) -> None:
        """Soon `listening` is called for each, and again after every loss of the connection."""

    def unsubscribe(self, topics: Iterable[str]) -> None: ...

    def publish(self, topic: str, data: bytes) -> None:
        """Soon, or never: what is published at once to one topic may be heard as one."""


class NoBus:
    """There is none: processes find each other's writes in the database."""

    live = False
    state = "off"

    async def start(self, listener: Listener) -> None:
        return

    async def close(self) -> None:
        return

    def begin(self, epoch: str) -> None:
        return

    def subscribe(self, topics: Iterable[str]) -> None:
        return

    def unsubscribe(self, topics: Iterable[str]) -> None:
        return

    def publish(self, topic: str, data: bytes) -> None:
        return
