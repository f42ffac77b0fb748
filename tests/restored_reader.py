"""A reader under which a backup is restored: what it was told of each timeline is looked at in the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp

from tests.feed_reader import HeldList
from tests.reader import Follower, Held
from tests.server_process import ServerProcess
from tests.sse_reader import Frame, SseReader

Json = dict[str, Any]


class Asked(Protocol):
    """Who reads by REST."""

    servers: list[ServerProcess]
    sessions: list[aiohttp.ClientSession]

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]: ...

    async def stored(self, conversation_id: str) -> tuple[list[Json], Json]: ...

    async def all_conversations(self) -> list[Json]: ...


@dataclass
class Timelines:
    """The two of one restore.

    They are `mixed` where the backup was restored before it got an epoch of its own: until then, who takes what for
    what cannot be told.
    """

    old: str
    mixed: bool
    new: str = ""
    heads: dict[str, int] = field(default_factory=dict)
    """Where each conversation ends in the new one, once its writers have stopped."""
    branch: dict[str, int] = field(default_factory=dict)
    """Up to where both are the same."""
    logs: dict[str, dict[int, tuple[str, Any]]] = field(default_factory=dict)
    messages: dict[str, dict[int, Json]] = field(default_factory=dict)
    conversations: dict[str, Json] = field(default_factory=dict)
    checked: int = 0
    """Frames that were looked at."""
    resets: int = 0

    async def end(self, world: Asked, names: list[str], branch: dict[str, int]) -> None:
        """Reads what is there now, and will not change any more."""
        self.branch = branch
        for name in names:
            windows, self.conversations[name] = await world.stored(name)
            self.messages[name] = {item["position"]: item for window in windows for item in window["items"]}
            self.logs[name] = await self._log(world.servers[0].port, name, windows[-1]["as_of"])
        self.heads = {name: self.conversations[name]["as_of"] for name in names}

    async def _log(self, port: int, name: str, head: int) -> dict[int, tuple[str, Any]]:
        events: dict[int, tuple[str, Any]] = {}
        async with SseReader("127.0.0.1", port, f"/api/conversations/{name}/events?after=0") as reader:
            while len(events) < head:
                frame = await reader.event()
                if frame.event != "ready":
                    events[frame.json["seq"]] = (frame.event, frame.json)
                    assert frame.id == f"{len(events)}@{self.new}"
        return events


@dataclass
class Restored(Follower):
    """Follows from the start, and reads all windows anew when it is told that what it holds is void."""

    world: Asked | None = None
    times: Timelines = field(default_factory=lambda: Timelines("", mixed=False))
    lists: HeldList | None = None
    began_anew: set[str] = field(default_factory=set)
    """The conversations that were reset."""

    @classmethod
    def of(cls, world: Asked, port: int, names: list[str], *, many: bool, feed: bool, times: Timelines) -> Restored:
        """One that holds nothing yet."""
        if many:
            target = f"/api/events?conversations={','.join(f'{name}:0' for name in names)}"
            target += "&feed=true" if feed else ""
        else:
            target = f"/api/conversations/{names[0]}/events?after=0"
        reader = cls("127.0.0.1", port, target, {name: Held() for name in names}, many, world=world, times=times)
        reader.frames = []
        reader.on_reset = reader._read_anew
        reader.lists = HeldList(world.all_conversations) if feed else None
        return reader

    @staticmethod
    def of_feed(port: int) -> SseReader:
        """A connection to the feed alone."""
        return SseReader("127.0.0.1", port, "/api/events")

    def past(self, seq: int) -> Callable[[], bool]:
        """Whether it has come that far in one of its conversations."""
        return lambda: any(held.last_seq >= seq for held in self.held.values())

    def left(self, when: asyncio.Event) -> Callable[[], bool]:
        """Whether it is time to go, and it has an id to come back with."""
        return lambda: when.is_set() and bool(self.last_id)

    def exact(self) -> bool:
        """Whether it has come to the end of the new timeline, which it knows to be one."""
        heads = self.times.heads
        if not heads:
            return False
        if set(self.held) & set(heads) and self._epoch != self.times.new:
            return False
        return all(
            held.last_seq == heads[name] and (name in self.began_anew or not self._knew)
            if name in heads
            else name in self.gone
            for name, held in self.held.items()
        )

    async def follow_to_the_end(self) -> None:
        """Until it is `exact`."""
        try:
            await self.follow(self.exact)
        except TimeoutError:
            heads = self.times.heads
            places = {name: (held.last_seq, heads.get(name), held.resets) for name, held in self.held.items()}
            last = [frame.lines for frame in (self.frames or [])[-5:]]
            raise AssertionError(f"{self.target} stands at {places}, gone: {self.gone}, last: {last}") from None

    async def _connect(self, done: Callable[[], bool]) -> None:
        if not self.last_id and self.frames is not None:
            # It comes back without an id, to where it first began: what it was given meanwhile says of no timeline
            # which one it was, and comes again.
            self.held = {name: Held() for name in self.held}
            self.frames.clear()
        await super()._connect(done)

    @property
    def _knew(self) -> bool:
        """Whether it was told anything in the old timeline."""
        ids = (frame.id for frame in self.frames or [] if frame.id is not None)
        return next(ids, "").endswith(f"@{self.times.old}")

    async def take(self, frame: Frame) -> None:
        """Plays one frame."""
        if self.lists is not None:
            await self.lists.take(frame)
        if frame.event == "reset":
            self.began_anew |= set(frame.json["as_of"]) if self.many else set(self.held)
        try:
            await super().take(frame)
        except AssertionError:
            # Two timelines in one cannot fit together; what is asked is that it ends when they are told apart.
            if not self.times.mixed or self._epoch != self.times.old:
                raise

    @property
    def _epoch(self) -> str:
        """Of the last id."""
        return self.last_id.rpartition("@")[2]

    async def _read_anew(self, name: str) -> None:
        assert self.world is not None
        status, conversation = 0, None
        while status not in {200, 404}:
            status, conversation = await self.world.ask("GET", f"/api/conversations/{name}")
        if status == 200:
            windows, _ = await self.world.stored(name)
            for window in windows:
                self.held[name].window(window)
            self.held[name].conversation = conversation

    def check(self, vanished: str) -> None:
        """It holds what is stored, and was given each frame as one of the timeline to which it belongs."""
        assert self.frames is not None
        begun: set[str] = set() if self._knew else set(self.held)
        gone: set[str] = set()
        told_apart = not self.times.mixed
        for frame in self.frames:
            if frame.id is not None:
                self._check_id(frame, begun, gone)
                told_apart |= frame.id.endswith(f"@{self.times.new}")
            if not frame.data:
                continue
            data = frame.json
            if frame.event == "reset":
                self.times.resets += 1
                begun |= set(data["as_of"]) if self.many else set(self.held)
            elif frame.event == "conversation.gone":
                gone.add(data["conversation_id"])
            elif "seq" in data and data["conversation_id"] != vanished and told_apart:
                self._check_event(frame.event, data, begun)
        assert set(self.held) - {vanished} <= begun, "each of them is void"
        if vanished in self.held:
            assert vanished in self.gone
        for name, held in self.held.items():
            if name != vanished:
                assert held.messages == self.times.messages[name]
                title = None if held.conversation is None else held.conversation["title"]
                assert title == self.times.conversations[name]["title"]
        if self.lists is not None and self._knew:
            assert self.lists.ready > 1, "its lists are others"

    def _check_id(self, frame: Frame, begun: set[str], gone: set[str]) -> None:
        """An id of the new timeline comes after all that the reader held was declared void; none of the old one does.

        A reader that is cut right behind it would resume with it.
        """
        assert frame.id is not None
        epoch = frame.id.rpartition("@")[2]
        assert epoch in {self.times.old, self.times.new}
        if epoch == self.times.new:
            assert set(self.held) - gone <= begun, f"an id of the new timeline without a reset: {frame}"
        else:
            assert self.times.mixed or not begun, f"an id of the old timeline after the reset: {frame}"

    def _check_event(self, event: str, data: Json, begun: set[str]) -> None:
        name, seq = data["conversation_id"], data["seq"]
        log = self.times.logs[name]
        if name in begun:
            # What was deleted meanwhile is a tombstone now.
            assert seq in log, f"an event that the new timeline does not have: {json.dumps(data)}"
            assert log[seq] == (event, data) or log[seq][0] == "message.deleted"
        elif seq > self.times.branch[name]:
            assert log.get(seq) != (event, data), f"an event of the new timeline without a reset: {json.dumps(data)}"
        self.times.checked += 1
