"""A backup is restored under readers, writers and two running servers: no reader takes the new timeline for the old.

Goes red when ids lose their epoch, or when a server goes on after `new-epoch` as if nothing had happened.
"""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests import proof
from tests.backups import Backups, backups_of, new_epoch
from tests.feed_reader import HeldList
from tests.restored_reader import Restored, Timelines
from tests.server_process import ServerProcess
from tests.sse_reader import StreamEnded
from tests.tcp_proxy import Cut, Hook, TcpProxy

Json = dict[str, Any]
CONVERSATIONS = 4
WORDS = ("😀", "e\u0301", "שלום", "." * 200)
WRITERS = 3  # besides one in each conversation that streams all the time


class World:
    """Two servers on one database, and everybody who uses them."""

    def __init__(self, servers: list[ServerProcess], sessions: list[aiohttp.ClientSession]) -> None:
        self.servers = servers
        self.sessions = sessions
        self.conversations: list[str] = []
        self.stop = asyncio.Event()
        """Set when the writers are to stop."""
        self._count = 0
        self._messages: list[str] = []

    def text(self) -> str:
        """Words that were never said before, so that the timelines can be told apart by them."""
        self._count += 1
        return f"{self._count} {random.choice(WORDS)} "

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the document; 0 where the connection failed. What fails must be said to pass."""
        try:
            async with random.choice(self.sessions).request(method, path, json=body) as answer:
                assert answer.status < 500 or answer.status == 503, await answer.text()
                return answer.status, None if answer.status == 204 else await answer.json()
        except aiohttp.ClientError:
            return 0, None

    async def asked(self, method: str, path: str, body: Any = None) -> Any:
        """The same, until it is done."""
        async with asyncio.timeout(30):
            while True:
                status, document = await self.ask(method, path, body)
                if status in {200, 201, 204}:
                    return document
                await asyncio.sleep(0.05)

    async def new_conversation(self) -> str:
        return str((await self.asked("POST", "/api/conversations", {"title": self.text()}))["id"])

    async def stored(self, conversation_id: str) -> tuple[list[Json], Json]:
        """All messages, window by window, each with the `as_of` of its window; and the conversation."""
        found: list[Json] = []
        after: int | None = 0
        while after is not None:
            window = await self.asked("GET", f"/api/conversations/{conversation_id}/messages?after={after}&limit=50")
            found.append(window)
            after = window["next"]
        return found, await self.asked("GET", f"/api/conversations/{conversation_id}")

    async def all_conversations(self) -> list[Json]:
        """The whole list."""
        found: list[Json] = []
        cursor = ""
        while True:
            page = await self.asked("GET", f"/api/conversations?limit=200{cursor}")
            found += page["items"]
            if page["next"] is None:
                return found
            cursor = f"&cursor={page['next']}"

    async def write(self) -> None:
        """Posts, edits, deletes and renames, whatever becomes of it."""
        while not self.stop.is_set():
            path = f"/api/conversations/{random.choice(self.conversations)}"
            which = random.random()
            if which < 0.6 or not self._messages:
                status, made = await self.ask("POST", f"{path}/messages", {"role": "user", "content": self.text()})
                if status == 201:
                    self._messages.append(made["id"])
            elif which < 0.8:
                message = f"/api/messages/{random.choice(self._messages)}"
                status, _ = await self.ask("PATCH", message, {"content": self.text()})
            elif which < 0.9:
                status, _ = await self.ask("DELETE", f"/api/messages/{random.choice(self._messages)}")
            else:
                status, _ = await self.ask("PATCH", path, {"title": self.text()})
            await asyncio.sleep(0.05 if status in {0, 503} else random.uniform(0, 0.01))

    async def stream(self, conversation_id: str) -> None:
        """Streams one message after another, and goes on where the server says that it is."""
        path = f"/api/conversations/{conversation_id}/messages"
        while not self.stop.is_set():
            status, message = await self.ask("POST", path, {"role": "user", "status": "streaming"})
            if status == 201:
                await self._stream_into(f"/api/messages/{message['id']}")
            await asyncio.sleep(0.05)

    async def _stream_into(self, message: str) -> None:
        length = 0
        for _ in range(random.randint(1, 200)):
            status, told = await self.ask("POST", f"{message}/deltas", {"offset": length, "text": self.text()})
            if status == 404 or self.stop.is_set():
                break  # what was made after the backup is not there any more
            if status in {200, 409}:
                length = told["length"]
                if told.get("message_status", "streaming") != "streaming":
                    return
            await asyncio.sleep(0.05 if status in {0, 503} else random.uniform(0, 0.01))
        if random.random() < 0.7:
            await self.ask("POST", f"{message}/finish", {"status": "complete"})


@asynccontextmanager
async def _world(database_url: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        servers = [ServerProcess(database_url) for _ in range(2)]
        await asyncio.gather(*(server.start() for server in servers))
        for server in servers:
            stack.push_async_callback(server.end, signal.SIGTERM)
        sessions = [await stack.enter_async_context(aiohttp.ClientSession(server.origin)) for server in servers]
        yield World(servers, sessions)


def _cut_at_random() -> Hook:
    left = random.choice([random.randint(1, 2_000), random.randint(2_000, 100_000)])

    def cut(chunk: bytes) -> bytes:
        nonlocal left
        if len(chunk) >= left:
            raise Cut(chunk[:left], clean=random.random() < 0.5)
        left -= len(chunk)
        return chunk

    return cut


async def _cut_now_and_then(proxy: TcpProxy, stop: asyncio.Event) -> None:
    """Also where nothing flows."""
    while not stop.is_set():
        await asyncio.sleep(random.uniform(0.02, 0.4))
        proxy.cut_all()


async def _follow_feed(world: World, port: int, held: HeldList, done: Callable[[], Awaitable[bool]]) -> None:
    """A reader of the feed alone: cut, it comes back, and reads its lists at each `ready`."""
    async with asyncio.timeout(120):
        while not await done():
            reader = Restored.of_feed(port)
            try:
                async with reader:
                    while not await done():
                        try:
                            frame = await reader.frame(0.25)
                        except TimeoutError:
                            continue
                        await held.take(frame)
            except (StreamEnded, ConnectionError):
                await asyncio.sleep(0.02)


async def _round(world: World, backups: Backups, *, epoch_first: bool) -> Timelines:
    """A backup is made, more is written, and the backup takes the place of it."""
    old = (await world.asked("GET", "/health"))["epoch"]
    world.stop = asyncio.Event()
    world.conversations = [await world.new_conversation() for _ in range(CONVERSATIONS)]
    base = list(world.conversations)
    ended, back = asyncio.Event(), asyncio.Event()
    cut_off = asyncio.Event()
    times = Timelines(old, mixed=not epoch_first)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        proxies = [await stack.enter_async_context(TcpProxy("127.0.0.1", s.port)) for s in world.servers]
        for proxy in proxies:
            proxy.on_connection = _cut_at_random
            tasks.create_task(_cut_now_and_then(proxy, ended))
        writers = [tasks.create_task(world.write()) for _ in range(WRITERS)]
        writers += [tasks.create_task(world.stream(name)) for name in base]

        def reader(port: int, names: list[str], *, many: bool, feed: bool = False) -> Restored:
            return Restored.of(world, port, names, many=many, feed=feed, times=times)

        # Cut before the backup: their ids are lower than the head of the new timeline will be.
        early = [reader(world.servers[n % 2].port, base, many=True) for n in range(2)]
        early += [reader(world.servers[n % 2].port, [name], many=False) for n, name in enumerate(base)]
        await asyncio.gather(*(r.follow(r.past(random.randint(1, 30)), 60) for r in early))
        heads = await asyncio.to_thread(backups.make)
        vanishing = await world.new_conversation()
        world.conversations.append(vanishing)
        writers.append(tasks.create_task(world.stream(vanishing)))
        everything = [*base, vanishing]
        ports = [server.port for server in world.servers]
        live = [reader(port, [name], many=False) for port in ports for name in (base[0], base[1], vanishing)]
        live += [reader(port, random.sample(everything, len(everything)), many=True, feed=True) for port in ports]
        flapping = [reader(proxy.port, [base[2]], many=False) for proxy in proxies]
        flapping += [reader(proxy.port, everything, many=True) for proxy in proxies]
        late = [reader(port, everything, many=True) for port in ports]
        late += [reader(port, [name], many=False) for port in ports for name in (base[3], vanishing)]
        following = [tasks.create_task(r.follow_to_the_end()) for r in (*live, *flapping)]
        leaving = [tasks.create_task(r.follow(r.left(cut_off))) for r in late]
        feeds = [HeldList(world.all_conversations) for _ in ports]

        async def feed_done(held: HeldList) -> bool:
            if not (back.is_set() and times.heads):
                return False
            return held.conversations == {item["id"]: item for item in await world.all_conversations()}

        following += [
            tasks.create_task(_follow_feed(world, port, held, lambda held=held: feed_done(held)))  # type: ignore[misc]
            for port, held in zip(ports, feeds, strict=True)
        ]
        await asyncio.sleep(random.uniform(0.2, 0.6))  # more than the backup has
        cut_off.set()
        await asyncio.wait(leaving)
        readies = [held.ready for held in feeds]
        if epoch_first:
            times.new = await asyncio.to_thread(new_epoch, backups.kept)
            await asyncio.to_thread(backups.restore)
        else:
            await asyncio.to_thread(backups.restore)
            await asyncio.sleep(random.uniform(0, 0.5))  # the operator is in no hurry, and writers go on
            times.new = await asyncio.to_thread(new_epoch, backups.live)
        back.set()
        for r in (*early, *late):
            await asyncio.sleep(random.uniform(0, 0.05))
            following.append(tasks.create_task(r.follow_to_the_end()))
        await asyncio.sleep(random.uniform(0.3, 1))  # the new timeline grows beyond the old one, here and there
        world.stop.set()
        await asyncio.wait(writers)
        await times.end(world, base, heads)
        await asyncio.wait(following)
        ended.set()
    for r in (*early, *late, *live, *flapping):
        r.check(vanishing)
    for held, before in zip(feeds, readies, strict=True):
        assert held.ready > before, "its lists are others"
    if epoch_first:
        for r in live:
            assert all(held.resets <= 1 for name, held in r.held.items() if name != vanishing), "one is enough"
    assert all(r.connections == 1 for r in live if r.many)
    return times


@pytest.mark.proof
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("epoch_first", [True, False], ids=["new epoch, then restored", "restored, then new epoch"])
async def test_no_reader_takes_the_timeline_of_a_restored_backup_for_the_one_it_knows(
    database_url: str, epoch_first: bool
) -> None:
    random.seed(proof.seed())
    rounds = proof.count(1, 10)
    checked = resets = 0
    backups = backups_of(database_url)
    try:
        async with _world(database_url) as world:
            for _ in range(rounds):
                times = await _round(world, backups, epoch_first=epoch_first)
                checked += times.checked
                resets += times.resets
    finally:
        backups.close()
    order = "new-epoch before" if epoch_first else "new-epoch after"
    proof.record(
        f"a backup restored under 26 readers and 2 servers, {order} the restore",
        database_url.partition(":")[0],
        f"{rounds} restores, {resets} resets, all exact",
        f"{checked} frames, none taken for one of the other timeline",
    )
