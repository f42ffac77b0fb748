"""Many writers of one SQLite file, in this process and in others: no write is lost, none fails."""

import asyncio
from contextlib import AsyncExitStack

from tests.storage.appending import Appender
from tests.storage.store import TENANT, bounded, opened


async def test_of_six_hundred_writes_none_is_lost(sqlite_url: str) -> None:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(sqlite_url)) for _ in range(3)]
        conversations = [await stores[0].conversation(str(n)) for n in range(4)]
        appenders = [
            await stack.enter_async_context(Appender(sqlite_url, f"process {n}", conversations, writers=10, turns=10))
            for n in range(3)
        ]

        async def write(number: int) -> None:
            for turn in range(10):
                content = f"{number}.{turn}"
                await stores[number % 3].post(conversations[(number + turn) % 4], content)

        async def read_and_write() -> None:
            # What would be lost if two read the same number before either wrote it.
            for _ in range(20):
                await stores[1].conversation()
                await asyncio.sleep(0)

        await bounded(*[write(number) for number in range(30)], read_and_write(), seconds=60)
        for appender in appenders:
            await appender.finished()
        contents = [
            message["content"] for conversation in conversations for message in await stores[0].check(conversation)
        ]
        told = [line.content for appender in appenders for line in appender.acknowledged]
        assert len(told) == 300
        assert sorted(contents) == sorted(told + [f"{n}.{turn}" for n in range(30) for turn in range(10)])
        page, _ = await stores[0].conversations.page(TENANT, 100, None)
        assert len(page) == 24
