"""A reader of the feed: it keeps a tenant's list of conversations by the rules of `/docs`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.sse_reader import Frame

Json = dict[str, Any]


@dataclass
class HeldList:
    """The tenant's conversations as the feed's reader has them.

    `read` reads the list by REST; it is asked whenever `ready` comes, as the rules say.
    """

    read: Callable[[], Awaitable[list[Json]]]
    conversations: dict[str, Json] = field(default_factory=dict)
    ready: int = 0
    states: int = 0
    """How many states have come."""

    async def take(self, frame: Frame) -> None:
        """Plays one frame; what is not of the feed is passed over."""
        if frame.event == "ready":
            self.ready += 1
            self.conversations = {item["id"]: item for item in await self.read()}
        elif frame.event.startswith("feed."):
            assert frame.id is None, "the feed has no ids"
            self.states += 1
            self._set(frame)

    def _set(self, frame: Frame) -> None:
        if frame.event == "feed.conversation.deleted":
            assert set(frame.json) == {"conversation_id"}
            self.conversations.pop(frame.json["conversation_id"], None)
            return
        assert frame.event == "feed.conversation", frame.event
        assert set(frame.json) == {"conversation"}
        state = frame.json["conversation"]
        held = self.conversations.get(state["id"])
        # The list may have been read after the state was; a conversation's states are told apart by their seq.
        if held is None or held["as_of"] <= state["as_of"]:
            self.conversations[state["id"]] = state
