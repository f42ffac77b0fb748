"""Readers and writers under which things break, and what must be true when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from tests.faults.follower import Follower, caught_up, follow, stop_all, until
from tests.faults.writer import Writer, check_acknowledged


@dataclass
class Load:
    """Readers and writers of a few conversations."""

    session: aiohttp.ClientSession
    ids: list[str]
    followers: list[Follower]
    writers: list[Writer]
    begun: float
    ended: float = 0.0

    @property
    def told(self) -> str:
        """What was written, and how fast."""
        rate = self.acknowledged / (self.ended - self.begun)
        return f"0 of {self.acknowledged} acknowledged lost ({rate:.0f} a second), no gap, no repeat"

    @property
    def acknowledged(self) -> int:
        return sum(len(writer.acknowledged) for writer in self.writers)

    @property
    def slowest_return(self) -> float:
        """The longest that any reader was without its stream, in seconds."""
        return max(seconds for follower in self.followers for seconds in follower.resumed)

    async def goes_on(self, messages: int) -> None:
        """Returns when so many more were acknowledged."""
        before = self.acknowledged
        await until(lambda: self.acknowledged >= before + messages, f"{messages} messages")

    def all_back(self) -> bool:
        return all(follower.ready for follower in self.followers)


@asynccontextmanager
async def loaded(
    port: int, streams: int, rate: float, *, conversations: int = 4, unique: bool = True
) -> AsyncIterator[Load]:
    """So many streams, and writers that post `rate` messages a second together. Everything is checked at the end.

    Where others write, too, texts need not be `unique`.
    """
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{port}", connector=aiohttp.TCPConnector(force_close=True)
    ) as session:
        ids = []
        for _ in range(conversations):
            async with session.post("/api/conversations", json={}) as answer:
                ids.append(str((await answer.json())["id"]))
        followers = [
            follower
            for conversation_id in ids
            for follower in await follow(port, conversation_id, streams // conversations)
        ]
        writers = [Writer(session, ids, pause=conversations / rate) for _ in range(conversations)]
        running = [asyncio.create_task(writer.run()) for writer in writers]
        load = Load(session, ids, followers, writers, time.perf_counter())
        try:
            yield load
            for writer in writers:
                writer.stop.set()
            await asyncio.gather(*running)
            load.ended = time.perf_counter()
            heads = await check_acknowledged(session, writers, ids, unique=unique)
            for number, conversation_id in enumerate(ids):
                share = len(followers) // conversations
                await caught_up(followers[number * share : (number + 1) * share], heads[conversation_id])
        finally:
            for task in running:
                task.cancel()
            await stop_all(followers)
