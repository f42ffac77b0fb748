"""A change whose answer was lost, and which is committed by the server after it was looked up."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry

from metrics.commits import CommitMetrics
from storage.append import Append, Committed, MessageChange, NewEvent, Outcome, Stale
from storage.config import CommitConfig
from storage.errors import StorageUnavailable
from storage.group_commit import GroupCommit


def _lost() -> StorageUnavailable:
    error = StorageUnavailable("the connection failed")
    error.__cause__ = TimeoutError()
    return error


class _Server:
    """Loses the first answer, and is done with what it was asked only when it is asked again."""

    def __init__(self) -> None:
        self.asked = 0

    async def commit(self, group: Sequence[Append], *, patient: bool) -> list[Outcome]:
        self.asked += 1
        if self.asked == 1:
            raise _lost()
        return [Stale() for _ in group]

    async def find(self, append: Append) -> Committed | None:
        return Committed(7, 0, "k3") if self.asked > 1 else None

    async def close(self) -> None: ...


async def test_it_is_not_made_twice() -> None:
    server = _Server()
    heard: list[int] = []
    commits = GroupCommit(
        server,
        server,
        CommitConfig(),
        lambda append, committed: heard.append(committed.seq),
        CommitMetrics(CollectorRegistry()),
        committers=1,
    )
    await commits.start()
    change = MessageChange("m", 6, "text", "complete", None, "[]", None, "{}", 4, "")
    events = [NewEvent("message.updated", "m", b"{}")]
    append = Append("default", "c", datetime.now(UTC), events, b"", 200, change=change)
    async with asyncio.timeout(20):
        assert await commits.submit(append) == Committed(7, 0, "k3")
    assert heard == [7]
    await commits.close()
