"""What a window costs near the start of a very long conversation, and at its end."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from prometheus_client import CollectorRegistry

from bench.session import Session
from bench.table import Row, median, ratios, spread
from bench.writes import TENANT, new_conversation, opened
from metrics.cache import CacheMetrics
from storage.database import Database
from storage.windows import Anchor, Windows

_WINDOW = 50
_SAMPLES = 400  # windows at each place in each of the rounds

# As an import would leave them, but for the events, which no window reads. An id is made of its number.
_POSTGRESQL = """
INSERT INTO messages (tenant, id, conversation_id, position, role, content, status, tool_calls, metadata, length,
                      sha256, created_at, updated_at, last_seq)
SELECT 'default', lpad(to_hex(n), 32, '0')::uuid, $1, n, 'user', repeat('x', 300), 'complete', '[]', '{}', 300,
       repeat('0', 64), now(), now(), n
FROM generate_series(1, $2::bigint) AS n
"""
_SQLITE = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
INSERT INTO messages (tenant, id, conversation_id, position, role, content, status, tool_calls, metadata, length,
                      sha256, created_at, updated_at, last_seq)
SELECT 'default', printf('%036d', n), ?, n, 'user', ?, 'complete', '[]', '{}', 300, ?, ?, ?, n FROM numbers
"""


def depth(session: Session) -> Iterator[Row]:
    """A window of 50 messages of 300 bytes, uncached, at position 10 and at 10,000,000, in process."""
    count = session.size(10_000_000, 200_000)
    for database in ("postgresql", "sqlite"):
        near, far = asyncio.run(_measured(session, session.url(database), count))
        found = ratios(far, near)
        yield Row(
            f"window of {_WINDOW}, uncached, at {count:,} ÷ at 10, {database}",
            f"{spread(found, digits=2)} ({spread(near, digits=3)} and {spread(far, 'ms', 3)})",
            "≤ 1.1",
            median(found) <= 1.1,
            raw={"near_ms": near, "far_ms": far},
        )


async def _measured(session: Session, url: str, count: int) -> tuple[list[float], list[float]]:
    async with opened(url) as (database, _, _):
        conversation = await new_conversation(database)
        session.say(f"filling {url.partition(':')[0]} with {count:,} messages")
        if database.dialect == "postgresql":
            await _fill_postgresql(database, conversation, count)
        else:
            await asyncio.to_thread(_fill_sqlite, url.removeprefix("sqlite:///"), conversation, count)
        windows = Windows(database, CacheMetrics(CollectorRegistry()))
        places = (10, count - _WINDOW + 1)
        await _round(windows, conversation, places)
        rounds = [await _round(windows, conversation, places) for _ in session.rounds(5)]
        return [each[0] for each in rounds], [each[1] for each in rounds]


async def _round(windows: Windows, conversation: str, places: tuple[int, int]) -> list[float]:
    """The median of each place in milliseconds: one after the other, so that what disturbs them disturbs both."""
    times: list[list[float]] = [[] for _ in places]
    for _ in range(_SAMPLES):
        for index, place in enumerate(places):
            begun = time.perf_counter()
            window = await windows.read(TENANT, conversation, Anchor("from", place), _WINDOW)
            times[index].append((time.perf_counter() - begun) * 1_000)
            assert (window.first, window.last) == (place, place + _WINDOW - 1)
    return [median(place) for place in times]


async def _fill_postgresql(database: Database, conversation: str, count: int) -> None:
    driver: Any
    async with database.driver() as driver:
        await driver.execute(_POSTGRESQL, conversation, count, timeout=3_600)
        await driver.execute(
            "UPDATE conversations SET message_count = $2, last_seq = $2 WHERE id = $1", conversation, count
        )
        await driver.execute("VACUUM ANALYZE messages", timeout=3_600)


def _fill_sqlite(path: str, conversation: str, count: int) -> None:
    at = "2026-01-01T00:00:00.000000Z"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(_SQLITE, (count, conversation, "x" * 300, "0" * 64, at, at))
        connection.execute(
            "UPDATE conversations SET message_count = ?, last_seq = ? WHERE id = ?", (count, count, conversation)
        )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
