"""A reader of conversations that plays by the wire's rules (`/docs`), and asserts what they promise it.

`Held` is what it holds of one conversation; `Follower` keeps it up to date over a stream that may be cut anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.sse_reader import Frame, SseReader, StreamEnded

Json = dict[str, Any]

_WHOLE = {
    "message.created",
    "message.completed",
    "message.failed",
    "message.cancelled",
    "message.updated",
    "message.deleted",
    "message.snapshot",
}
_FINISHED = {"message.completed", "message.failed", "message.cancelled"}
_AWAY = (StreamEnded, ConnectionError, asyncio.IncompleteReadError, TimeoutError)


def utf16_length(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Held:
    """What a reader holds of one conversation.

    One that holds `everything` has followed from the beginning: nothing concerns a message that it has not. Another
    holds windows, and ignores what concerns messages outside them.
    """

    everything: bool = True
    messages: dict[int, Json] = field(default_factory=dict)
    runs: dict[str, Json] = field(default_factory=dict)
    conversation: Json | None = None
    deleted: bool = False
    last_seq: int = 0
    as_of: dict[int, int] = field(default_factory=dict)
    """By position: up to which seq the window that brought the message is true."""
    passed: dict[str, list[tuple[str, Json]]] = field(default_factory=dict)
    """By id: what the stream told of messages that it does not hold. A page needs it only while it waits for a window:
    one that is long on its way brings messages as they were before that."""
    resets: int = 0

    def copy(self) -> Held:
        """Another reader that holds the same."""
        return replace(
            self,
            messages={position: dict(message) for position, message in self.messages.items()},
            runs=dict(self.runs),
            as_of=dict(self.as_of),
            passed={name: list(told) for name, told in self.passed.items()},
        )

    def window(self, window: Json) -> None:
        """Takes in a window, however late: what it holds of a message, and is newer, stays.

        To a message that it did not hold it applies what the stream has told since the window's `as_of`.
        """
        for message in window["items"]:
            position = message["position"]
            if position not in self.messages or window["as_of"] > max(self.last_seq, self.as_of.get(position, 0)):
                self.messages[position] = dict(message)
                self.as_of[position] = window["as_of"]
                for event, data in self.passed.pop(message["id"], ()):
                    self._play(event, data)

    def let_go(self, position: int) -> None:
        """Forgets a message, as a page does that is scrolled away from it. Not while it waits for a window."""
        self.messages.pop(position, None)
        self.as_of.pop(position, None)

    def reset(self, as_of: int) -> None:
        """All of it is void; it goes on after `as_of`."""
        self.messages.clear()
        self.runs.clear()
        self.as_of.clear()
        self.passed.clear()
        self.conversation = None
        self.last_seq = as_of
        self.resets += 1

    def apply(self, event: str, data: Json) -> None:
        """Takes in an event of the conversation; one whose seq it has is dropped."""
        seq = data["seq"]
        if seq <= self.last_seq:
            return
        self.last_seq = seq
        self._play(event, data)

    def _play(self, event: str, data: Json) -> None:
        seq = data["seq"]
        if event in _WHOLE:
            self._set(event, data)
        elif event == "message.delta":
            self._append(seq, data)
        elif event.startswith("run."):
            self.runs[data["run"]["id"]] = data["run"]
        elif event.startswith("tool."):
            self._set_tool_call(event, data)
        else:
            assert event in {"conversation.updated", "conversation.deleted"}, event
            self.conversation = data["conversation"]
            self.deleted = event == "conversation.deleted"

    def _knows(self, seq: int, position: int) -> bool:
        return seq <= self.as_of.get(position, 0)

    def _pass(self, message_id: str, event: str, data: Json) -> None:
        self.passed.setdefault(message_id, []).append((event, data))

    def _set(self, event: str, data: Json) -> None:
        message = data["message"]
        position = message["position"]
        if self._knows(data["seq"], position):
            return
        held = self.messages.get(position)
        if held is None and not self.everything:
            self._pass(message["id"], event, data)
            return
        if held is not None and held["status"] == "streaming" and event in _FINISHED:
            assert held["content"] == message["content"], "what was assembled is what it became"
        self.messages[position] = dict(message)

    def _append(self, seq: int, data: Json) -> None:
        position = data["position"]
        if self._knows(seq, position):
            return
        held = self.messages.get(position)
        if held is None:
            assert not self.everything, f"text of a message that was never told of, seq {seq}"
            self._pass(data["message_id"], "message.delta", data)
            return
        if held["status"] == "deleted":
            return  # a replay may have told of that first, where its snapshot already had it
        assert held["status"] == "streaming", f"more text for a message that is {held['status']}, seq {seq}"
        assert held["id"] == data["message_id"]
        assert utf16_length(held["content"]) == data["offset"], f"a gap or a repeat in the text, seq {seq}"
        held["content"] += data["text"]

    def _set_tool_call(self, event: str, data: Json) -> None:
        held = next((held for held in self.messages.values() if held["id"] == data["message_id"]), None)
        if held is None:
            self._pass(data["message_id"], event, data)
        elif not self._knows(data["seq"], held["position"]):
            calls = {call["id"]: call for call in held["tool_calls"]}
            calls[data["tool_call"]["id"]] = data["tool_call"]
            held["tool_calls"] = list(calls.values())


@dataclass
class Follower:
    """Follows conversations over one stream, and comes back with the last id when it ends, as an `EventSource` does.

    `held` has what it knows of each conversation, in the order of the request. `many` says that they are followed by
    `/api/events`; without it there is one.
    """

    host: str
    port: int
    target: str
    held: dict[str, Held]
    many: bool = False
    last_id: str = ""
    ready: int = 0
    """How often `ready` has come."""
    connections: int = 0
    gone: set[str] = field(default_factory=set)
    """Those of which the server said that they are not there."""
    frames: list[Frame] | None = None
    """Every frame, when it is set to a list."""
    on_reset: Callable[[str], Any] | None = None
    pause: float = 0.01
    pace: Callable[[], Awaitable[None]] | None = None
    """Awaited before each frame: how a slow reader reads."""
    version: str = "1.1"
    receive_buffer: int | None = None

    async def follow(self, done: Callable[[], bool], timeout: float = 120.0) -> None:
        """Until `done`, which is asked after each frame. Every wait is bounded."""
        async with asyncio.timeout(timeout):
            while not done():
                with contextlib.suppress(*_AWAY):
                    await self._connect(done)
                if not done():
                    await asyncio.sleep(self.pause)

    async def _connect(self, done: Callable[[], bool]) -> None:
        headers: Mapping[str, str] = {"Last-Event-ID": self.last_id} if self.last_id else {}
        self.connections += 1
        async with SseReader(
            self.host, self.port, self.target, headers, self.version, receive_buffer=self.receive_buffer
        ) as reader:
            if reader.status == 404 and not self.many:
                self.gone.update(self.held)
                return
            assert reader.status == 200, reader.status
            while not done():
                frames = asyncio.ensure_future(reader.frames())
                try:
                    while not frames.done() and not done():
                        await asyncio.wait({frames}, timeout=0.1)
                    for frame in frames.result() if frames.done() else ():
                        if self.pace is not None:
                            await self.pace()
                        await self.take(frame)
                        if done():
                            break
                finally:
                    frames.cancel()

    async def take(self, frame: Frame) -> None:
        """Plays one frame by the rules."""
        if self.frames is not None:
            self.frames.append(frame)
        if frame.id is not None:
            assert frame.data, "an id alone would move the reader's cursor and tell it nothing"
            self.last_id = frame.id
        if not frame.data:
            return
        data = frame.json
        if frame.event == "ready":
            self.ready += 1
        elif frame.event == "reset":
            assert frame.id is None
            as_of = data["as_of"] if self.many else dict.fromkeys(self.held, data["as_of"])
            for name, seq in as_of.items():
                self.held[name].reset(seq)
                if self.on_reset is not None:
                    await self.on_reset(name)
        elif frame.event == "conversation.gone":
            self.gone.add(data["conversation_id"])
        elif frame.event not in {"cursor", "drain"} and not frame.event.startswith("feed."):
            # State has ids only as far as one can resume from them.
            is_state = frame.event.endswith((".snapshot", ".updated")) or frame.event.startswith("run.")
            assert self.many == (frame.id is None) or is_state, frame
            self.held[data["conversation_id"]].apply(frame.event, data)
