"""What a window costs at the start of a long conversation, and at its end: `make bench-windows`.

Both are read in turn, in one run, through the repository that serves them, uncached; medians, and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from msgspec import Raw
from prometheus_client import CollectorRegistry

from events.appending import Appending
from events.conversation_log import ConversationLog, Draft
from metrics.cache import CacheMetrics
from metrics.commits import CommitMetrics
from metrics.operations import Unobserved
from storage.commit_postgresql import PostgresqlCommitter
from storage.commit_sqlite import SqliteCommitter
from storage.config import CommitConfig, StorageConfig
from storage.conversations import Conversations
from storage.database import Database
from storage.group_commit import GroupCommit
from storage.log import Log
from storage.url import parse_database_url
from storage.windows import Anchor, Windows
from tests.postgres_server import PostgresServer

TENANT = "default"
WINDOW = 50
ROUNDS = 5


@contextlib.contextmanager
def _databases(url: str | None) -> Iterator[list[str]]:
    """The one that was asked for, or a new one of each kind."""
    if url is not None:
        yield [url]
        return
    with tempfile.TemporaryDirectory() as folder, PostgresServer() as server:
        server.create_database("bench")
        yield [f"sqlite:///{Path(folder) / 'bench.db'}", server.url("bench")]


@contextlib.asynccontextmanager
async def _open(url: str) -> AsyncIterator[tuple[Database, ConversationLog]]:
    database = Database(StorageConfig(parse_database_url(url), cache_bytes=0), Unobserved())
    await database.start()
    await database.wait_until_ready()
    on_sqlite = database.dialect == "sqlite"
    committer = SqliteCommitter(database) if on_sqlite else PostgresqlCommitter(database)
    commits = GroupCommit(
        committer,
        Log(database),
        CommitConfig(),
        lambda append, committed: None,
        CommitMetrics(CollectorRegistry()),
        committers=1 if on_sqlite else 3,
    )
    await commits.start()
    try:
        yield database, ConversationLog(database, Appending(database, commits), frozenset())
    finally:
        await commits.close()
        await database.close()


async def _fill(database: Database, log: ConversationLog, count: int) -> str:
    made = await Conversations(database).create(TENANT, "bench", Raw(b"{}"), None)
    conversation_id = made.body[7:43].decode()
    draft = Draft("user", "x" * 300)
    for first in range(0, count, 1_000):
        size = min(1_000, count - first)
        await log.post_batch(TENANT, conversation_id, [draft] * size, key=None, progress=None)
        if first % 100_000 == 0:
            print(f"\r  {first:,} of {count:,} messages", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    if database.dialect == "postgresql":
        async with database.driver() as driver:
            await driver.execute("VACUUM ANALYZE messages")
    return conversation_id


async def _measure(windows: Windows, conversation_id: str, places: list[int], samples: int) -> list[float]:
    """The median of each place in milliseconds: one after the other, so that noise meets them alike."""
    times: list[list[float]] = [[] for _ in places]
    for _ in range(samples):
        for index, place in enumerate(places):
            begun = time.perf_counter()
            window = await windows.read(TENANT, conversation_id, Anchor("from", place), WINDOW)
            times[index].append((time.perf_counter() - begun) * 1_000)
            assert len(window.items) == WINDOW
    return [statistics.median(place) for place in times]


async def _run(url: str, count: int, samples: int) -> None:
    async with _open(url) as (database, log):
        conversation_id = await _fill(database, log, count)
        windows = Windows(database, CacheMetrics(CollectorRegistry()))
        places = [1, count - WINDOW + 1]
        await _measure(windows, conversation_id, places, 100)
        rounds = [await _measure(windows, conversation_id, places, samples) for _ in range(ROUNDS)]
        near, far = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = sorted(r[1] / r[0] for r in rounds)
        print(
            f"| {database.dialect} | {near:.3f} | {far:.3f} | {statistics.median(ratios):.2f}"
            f" ({ratios[0]:.2f}–{ratios[-1]:.2f}) |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.windows", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=400, help="windows at each place in each of the rounds")
    parser.add_argument("--url", help="measure on this (empty) database instead of a new one of each kind")
    arguments = parser.parse_args()
    print(f"A window of {WINDOW} messages of 300 bytes, ms (medians of {ROUNDS} rounds of {arguments.samples}):\n")
    print(f"| database | at position 1 | at {arguments.messages:,} | ratio (lowest–highest round) |")
    print("| --- | --- | --- | --- |")
    with _databases(arguments.url) as urls:
        for url in urls:
            asyncio.run(_run(url, arguments.messages, arguments.samples))


if __name__ == "__main__":
    main()
