"""What a reader makes of one conversation's stream: it trusts the stream, and notes where it could not."""

import hashlib
import json
from typing import Any


class Assembly:
    """The messages of a conversation, put together from its events as the design tells a reader to."""

    def __init__(self) -> None:
        self.messages: dict[int, dict[str, Any]] = {}
        """By position, as they are on the wire."""
        self.conversation: dict[str, Any] = {}
        """As of its latest event."""
        self.seqs: list[int] = []
        """The events, in the order they came."""
        self.deltas = 0
        """How many of them were deltas."""
        self.faults: list[str] = []
        """What did not fit."""

    def apply(self, event: str, data: str, event_id: str) -> None:
        """Takes one event as a client library hands it over."""
        payload = json.loads(data)
        if event in {"ready", "drain"}:
            return
        if event == "reset":
            self.messages.clear()
            self.faults.append(f"reset: {payload['reason']}")
            return
        seq = payload["seq"]
        if event_id.partition("@")[0] != str(seq):
            self.faults.append(f"event {seq} came with the id {event_id!r}")
        self.seqs.append(seq)
        if event == "message.delta":
            self._append(payload)
        elif "message" in payload:
            self._set(event, payload["message"])
        elif "conversation" in payload:
            self.conversation = payload["conversation"]

    def _append(self, delta: dict[str, Any]) -> None:
        self.deltas += 1
        message = self.messages.get(delta["position"])
        if message is None or message["status"] != "streaming" or _length(message["content"]) != delta["offset"]:
            self.faults.append(f"delta {delta['seq']} does not continue what is there: {message}")
        else:
            message["content"] += delta["text"]

    def _set(self, event: str, message: dict[str, Any]) -> None:
        before = self.messages.get(message["position"])
        if event in {"message.completed", "message.failed", "message.cancelled"} and (
            before is None or sha256(before["content"]) != message["sha256"]
        ):
            self.faults.append(f"the deltas do not make up what was completed: {before}, {message}")
        self.messages[message["position"]] = message


def sha256(text: str) -> str:
    """As a message has it: the lower hex of the content's UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _length(text: str) -> int:
    """In UTF-16 code units, as a browser counts."""
    return len(text.encode("utf-16-le")) // 2
