"""Whatever is done in whatever order: every write is answered as the model says, every reader ends exact.

A failure prints the steps that led to it, as a program. The seed that is printed repeats them all: SWARM_SEED=… .
"""

from __future__ import annotations

import asyncio
import itertools
import os
from datetime import UTC, datetime
from typing import Any, TypeVar

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from events.runs import ToolCall
from storage.records import Run, new_id
from tests import proof
from tests.proofs.model import UNKNOWN, Chat, Message, Reader, World, Writers, compare, world
from tests.reader import Follower, Held, utf16_length
from tests.tcp_proxy import TcpProxy

STEPS = 50  # of one run
_MOST_READERS = 6

T = TypeVar("T")

_AT = datetime(2026, 1, 1, tzinfo=UTC)
texts = st.text(st.sampled_from("ab \n\r:\u2028\u0301é😀👩\u200dא"), min_size=1, max_size=8)
titles = st.none() | texts
numbers = st.integers(0, 1_000)  # which of those that are there
switch = st.booleans()


def _nth(items: list[T], number: int) -> T:
    return items[number % len(items)]


class Machine(RuleBasedStateMachine):
    """A world in which things happen. `_any` means: whatever is there, counted from the oldest."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.writers = Writers(self.world)
        self.readers: list[Reader] = []

    def check_invariants(self, *arguments: Any, **options: Any) -> None:
        self.world.steps += bool(self.chats)
        super().check_invariants(*arguments, **options)

    def teardown(self) -> None:
        try:
            if self.writers.chats:
                self.world.do(self._settle())
        finally:
            self.world.do(self._leave())

    # What is there.

    @property
    def chats(self) -> list[Chat]:
        return self.writers.chats

    def _chat(self, number: int) -> Chat:
        return _nth(self.chats, number)

    def _message(self, number: int) -> tuple[Chat, Message]:
        return _nth([(chat, message) for chat in self.chats for message in chat.messages], number)

    def _streaming(self, number: int) -> tuple[Chat, Message]:
        found = [(chat, message) for chat in self.chats for message in chat.streaming if not chat.deleted]
        return _nth(found, number)

    def has_messages(self) -> bool:
        return any(chat.messages for chat in self.chats)

    def has_streaming(self) -> bool:
        return any(chat.streaming for chat in self.chats if not chat.deleted)

    def has_written(self) -> bool:
        return bool(self.writers.written)

    def has_readers(self) -> bool:
        return bool(self.readers)

    # Writers.

    @initialize(title=titles)
    def begin(self, title: str | None) -> None:
        self.world.do(self.writers.create(title))

    @rule(server=switch)
    def go_to(self, server: bool) -> None:
        """From now on this server is asked."""
        self.writers.here = self.world.clients[server]

    @precondition(lambda self: len(self.chats) < 3)
    @rule(title=titles)
    def create(self, title: str | None) -> None:
        self.world.do(self.writers.create(title))

    @rule(chat=numbers, contents=st.lists(texts, min_size=1, max_size=4), many=switch, key=switch)
    def post(self, chat: int, contents: list[str], many: bool, key: bool) -> None:
        self.world.do(self.writers.post(self._chat(chat), contents[: None if many else 1], many=many, key=key))

    @rule(chat=numbers, key=switch)
    def open(self, chat: int, key: bool) -> None:
        self.world.do(self.writers.open(self._chat(chat), key=key))

    @precondition(has_streaming)
    @rule(message=numbers, text=texts, key=switch)
    def delta(self, message: int, text: str, key: bool) -> None:
        chat, found = self._streaming(message)
        self.world.do(self.writers.delta(chat, found, found.length, text, text, key=key))

    @precondition(has_messages)
    @rule(
        message=numbers,
        text=st.just("") | texts,
        begin=numbers,
        end=numbers,
        how=st.sampled_from(["repeated", "overlapping", "gapped", "different"]),
        key=switch,
    )
    def faulty_delta(self, message: int, text: str, begin: int, end: int, how: str, key: bool) -> None:
        """Of any message, finished or not."""
        chat, found = self._message(message)
        content = found.content
        begin %= len(content) + 1
        offset = utf16_length(content[:begin])
        rest: str | None = ""
        match how:
            case "repeated":
                text = content[begin : begin + end % (len(content) - begin + 1)]
            case "overlapping":
                text, rest = content[begin:] + text, text
            case "gapped":
                offset, rest = found.length + 1 + end, None
            case _:
                text, rest = ("x" + content[begin + 1 :], None) if begin < len(content) else (text, text)
        self.world.do(self.writers.delta(chat, found, offset, text, rest, key=key))

    @precondition(has_messages)
    @rule(message=numbers, status=st.sampled_from(["complete", "failed", "cancelled"]), key=switch)
    def finish(self, message: int, status: str, key: bool) -> None:
        self.world.do(self.writers.finish(*self._message(message), status, key=key))

    @precondition(has_messages)
    @rule(message=numbers, text=texts, key=switch)
    def edit(self, message: int, text: str, key: bool) -> None:
        self.world.do(self.writers.edit(*self._message(message), text, key=key))

    @precondition(has_messages)
    @rule(message=numbers)
    def delete(self, message: int) -> None:
        self.world.do(self.writers.delete(*self._message(message)))

    @rule(chat=numbers, title=titles, key=switch)
    def rename(self, chat: int, title: str | None, key: bool) -> None:
        self.world.do(self.writers.rename(self._chat(chat), title, key=key))

    @precondition(lambda self: sum(not chat.deleted for chat in self.chats) > 1)
    @rule(chat=numbers, sure=st.integers(0, 3))
    def delete_chat(self, chat: int, sure: int) -> None:
        if not sure:
            self.world.do(self.writers.delete_chat(self._chat(chat)))

    @precondition(has_written)
    @rule(number=numbers, other=switch)
    def repeat(self, number: int, other: bool) -> None:
        self.world.do(self.writers.repeat(_nth(self.writers.written, number), other=other))

    @rule(chat=numbers, text=texts)
    def burst(self, chat: int, text: str) -> None:
        self.world.do(self.writers.burst(self._chat(chat), text))

    @rule(chat=numbers, number=st.integers(0, 2), state=st.sampled_from(["running", "succeeded", "failed"]))
    def run(self, chat: int, number: int, state: Any) -> None:
        found = self._chat(chat)
        known = list(found.runs)
        run_id = known[number] if number < len(known) else new_id()
        if not found.deleted:
            self.world.do(
                self.writers.run(found, Run(run_id, found.id, "general_01", state, None, 1, None, _AT, _AT, None))
            )

    @precondition(has_streaming)
    @rule(message=numbers, number=st.integers(0, 2), text=texts)
    def tool(self, message: int, number: int, text: str) -> None:
        chat, found = self._streaming(message)
        self.world.do(self.writers.tool(chat, found, ToolCall(f"call{number}", "search", result=text)))

    @rule(chat=numbers, keep=st.integers(0, 5))
    def retain(self, chat: int, keep: int) -> None:
        if not self._chat(chat).deleted:
            self.world.do(self.writers.retain(self._chat(chat), keep))

    @rule(chat=numbers, text=texts, keep=st.integers(0, 5))
    def sleep_long(self, chat: int, text: str, keep: int) -> None:
        """All readers are away while more happens than the log keeps."""
        found = self._chat(chat)

        async def happen() -> None:
            for reader in self.readers:
                await reader.sleep()
            for message in found.streaming[1:]:
                await self.writers.finish(found, message, "failed", key=False)
            await self.writers.burst(found, text)
            await self.writers.retain(found, keep)

        if not found.deleted:
            self.world.do(happen())

    # Readers.

    @precondition(lambda self: len(self.readers) < _MOST_READERS)
    @rule(chat=numbers, after=numbers, limit=st.integers(1, 9))
    def follow_from_window(self, chat: int, after: int, limit: int) -> None:
        """A reader that holds a window, and the stream from there."""
        found = self._chat(chat)

        async def follow() -> None:
            held = Held(everything=False)
            window = await self.writers.window(found, after % (len(found.messages) + 1), limit)
            held.window(window)
            held.last_seq = window["as_of"]
            await self._follow(f"{found.path}/events?after={window['as_of']}", {found.id: held})

        if not found.deleted:
            self.world.do(follow())

    @precondition(lambda self: len(self.readers) < _MOST_READERS)
    @rule(chat=numbers)
    def follow_from_the_start(self, chat: int) -> None:
        found = self._chat(chat)
        if not found.deleted:
            self.world.do(self._follow(f"{found.path}/events?after=0", {found.id: Held()}))

    @precondition(lambda self: len(self.readers) < _MOST_READERS)
    @rule(feed=switch, reverse=switch)
    def follow_all(self, feed: bool, reverse: bool) -> None:
        """All that there are on one connection, and one that is not."""
        chats = self.chats[::-1] if reverse else self.chats
        places = ",".join([f"{chat.id}:0" for chat in chats] + [UNKNOWN])
        target = f"/api/events?conversations={places}" + ("&feed=true" if feed else "")
        self.world.do(self._follow(target, {chat.id: Held() for chat in chats}, many=True))

    async def _follow(self, target: str, held: dict[str, Held], *, many: bool = False) -> None:
        here = self.writers.here
        assert here.port is not None
        proxy = TcpProxy(here.host, here.port)
        await proxy.__aenter__()
        follower = Follower("127.0.0.1", proxy.port, target, held, many, frames=[], pause=0.001)
        reader = Reader(follower, proxy)
        proxy.on_connection = reader.watch
        self.readers.append(reader)
        reader.wake(here)

    @precondition(has_readers)
    @rule(number=numbers, size=st.integers(1, 3_000), clean=switch, server=switch)
    def cut(self, number: int, size: int, clean: bool, server: bool) -> None:
        """After so many more bytes, wherever that is; and back it comes, by another server perhaps."""
        reader = _nth(self.readers, number)
        reader.left, reader.clean = size, clean
        if reader.task is not None:
            reader.wake(self.world.clients[server])

    @precondition(has_readers)
    @rule(number=numbers)
    def sleep(self, number: int) -> None:
        self.world.do(_nth(self.readers, number).sleep())

    @precondition(has_readers)
    @rule(number=numbers, server=switch)
    def wake(self, number: int, server: bool) -> None:
        async def wake() -> None:
            _nth(self.readers, number).wake(self.world.clients[server])

        self.world.do(wake())

    @precondition(has_readers)
    @rule(number=numbers, server=switch)
    def fork(self, number: int, server: bool) -> None:
        """Another reader that holds the same now, and sleeps: it resumes from an id that will be old then."""
        one = _nth(self.readers, number).follower

        async def fork() -> None:
            # All of it before anything is awaited: the other one reads on.
            held = {name: held.copy() for name, held in one.held.items()}
            last_id, gone = one.last_id, set(one.gone)
            await self._follow(one.target, held, many=one.many)
            reader = self.readers[-1]
            reader.follower.last_id, reader.follower.gone = last_id, gone
            await reader.sleep()

        if len(self.readers) < _MOST_READERS:
            self.world.do(fork())

    @rule()
    def settle(self) -> None:
        self.world.do(self._settle())

    async def _settle(self) -> None:
        """All readers wake, come to the end, and hold what is stored."""
        truths = {chat.id: await self.writers.truth(chat) for chat in self.chats if not chat.deleted}
        for reader in self.readers:
            reader.wake(self.writers.here)
        by_id = {chat.id: chat for chat in self.chats}
        for number, reader in enumerate(self.readers):
            chats = [by_id[name] for name in reader.follower.held]
            try:
                async with asyncio.timeout(10):
                    while not all(reader.has(chat) for chat in chats):
                        await asyncio.sleep(0.002)
            except TimeoutError:
                places = {chat.id: (reader.follower.held[chat.id].last_seq, chat.head) for chat in chats}
                raise AssertionError(f"reader {number} does not come to the end: {places}, {reader}") from None
            for chat in chats:
                if not chat.deleted:
                    wrong = compare(chat, reader.follower.held[chat.id], truths[chat.id])
                    assert not wrong, f"reader {number}, {reader.follower.last_id}:\n{wrong}"
                    self.world.ends += 1
            self._check_ids(reader.follower)

    def _check_ids(self, follower: Follower) -> None:
        ids = [frame.id.partition("@")[0] for frame in follower.frames or [] if frame.id is not None]
        places = [[int(seq) for seq in text.split(".")] for text in ids]
        for one, other in itertools.pairwise(places):
            assert all(seq <= later for seq, later in zip(one, other, strict=True)), "an id never goes back"

    async def _leave(self) -> None:
        for reader in self.readers:
            frames = reader.follower.frames or []
            self.world.states += any(frame.event == "message.snapshot" for frame in frames)
            self.world.connections += reader.follower.connections
            if reader.task is not None:
                reader.task.cancel()
                await asyncio.gather(reader.task, return_exceptions=True)
            await reader.proxy.__aexit__(None, None, None)


def _run(machine: type[Machine], seed: int, runs: int) -> None:
    run_state_machine_as_test(
        hypothesis.seed(seed)(machine),
        settings=hypothesis.settings(
            max_examples=runs,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.proof
@pytest.mark.timeout(3_000)
def test_every_reader_ends_exact_whatever_is_done(database_url: str) -> None:
    steps, runs = proof.count(250, 10_000), proof.count(5, 20)
    seed = proof.seed() if proof.is_full() or "SWARM_SEED" in os.environ else 3
    with world(database_url) as served:
        machine = type("Machine", (Machine,), {"world": served})
        while served.steps < steps:
            _run(machine, seed, runs)
            seed += 1
    proof.record(
        "a model of writers and readers on two servers",
        database_url.partition(":")[0],
        f"{served.steps} steps",
        f"readers compared {served.ends} times, {served.connections} connections, {served.states} given state",
    )
