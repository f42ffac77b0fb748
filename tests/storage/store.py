"""All of storage on one database, put together as the server does, with what tests ask of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec import Raw
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from events.appending import Appending
from events.conversation_log import ConversationLog, Draft
from metrics.cache import CacheMetrics
from metrics.commits import CommitMetrics
from metrics.operations import OperationObserver, Unobserved
from storage.append import Append, Outcome, fill
from storage.commit_postgresql import PostgresqlCommitter
from storage.commit_sqlite import SqliteCommitter
from storage.config import CommitConfig, StorageConfig
from storage.conversations import Conversations
from storage.database import Database
from storage.group_commit import Committer, GroupCommit
from storage.idempotency import WriteKey
from storage.log import Log
from storage.messages import Messages
from storage.records import LoggedEvent, Window
from storage.url import parse_database_url
from storage.windows import Anchor, Windows

TENANT = "acme"
SHIPPED = frozenset({"general_01", "coding_01"})
TIMEOUT = 30.0  # what no wait of a test takes, even on a busy machine

Json = dict[str, Any]
T = TypeVar("T")


class Gate:
    """A committer whose groups can be held, and made to fail, before they reach the database."""

    def __init__(self, inner: Committer) -> None:
        self.groups: list[Sequence[Append]] = []
        """Those that have arrived, held or not."""
        self.failures: list[Exception] = []
        """What the next groups fail with, one each."""
        self.inside = 0
        """How many groups are being committed now, and not held."""
        self._inner = inner
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def arrived(self, groups: int = 1) -> None:
        """Waits until so many groups have come, since the beginning."""
        await until(lambda: len(self.groups) >= groups)

    async def commit(self, group: Sequence[Append], *, patient: bool) -> list[Outcome]:
        self.groups.append(group)
        await self._open.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.inside += 1
        try:
            return await self._inner.commit(group, patient=patient)
        finally:
            self.inside -= 1

    async def close(self) -> None:
        await self._inner.close()


@dataclass
class Store:
    """`committed` is what the group commit told its listener: appends, with their first seq and position."""

    database: Database
    gate: Gate
    commits: GroupCommit
    writes: ConversationLog
    conversations: Conversations
    messages: Messages
    windows: Windows
    log: Log
    committed: list[tuple[Append, int, int]] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """How many appends are in the queue."""
        return self.commits._waiting

    async def conversation(self, title: str | None = None, tenant: str = TENANT) -> str:
        """The id of a new conversation."""
        answer = await self.conversations.create(tenant, title, Raw(b"{}"), None)
        return str(json.loads(answer.body)["id"])

    async def post(self, conversation_id: str, content: str, key: WriteKey | None = None, **fields: Any) -> Json:
        """The message that was made of a user's words."""
        answer = await self.writes.post(
            TENANT, conversation_id, [Draft("user", content, **fields)], many=False, key=key
        )
        assert answer.status == 201
        message: Json = json.loads(answer.body)
        return message

    async def post_many(self, conversation_id: str, contents: Sequence[str]) -> list[Json]:
        """The messages of one append."""
        answer = await self.writes.post(
            TENANT, conversation_id, [Draft("user", content) for content in contents], many=True, key=None
        )
        assert answer.status == 201
        items: list[Json] = json.loads(answer.body)["items"]
        return items

    async def edit(self, message_id: str, content: str, key: WriteKey | None = None) -> Json:
        answer = await self.writes.edit(TENANT, message_id, content=content, metadata=None, key=key)
        assert answer.status == 200
        message: Json = json.loads(answer.body)
        return message

    async def window(self, conversation_id: str, limit: int = 10_000, tenant: str = TENANT) -> Window:
        return await self.windows.read(tenant, conversation_id, Anchor("newest"), limit)

    async def events(self, conversation_id: str, until: int | None = None) -> list[LoggedEvent]:
        """The whole log, up to seq `until`."""
        events: list[LoggedEvent] = []
        while True:
            after = events[-1].seq if events else 0
            page = await self.log.page(TENANT, conversation_id, after, limit=500, budget=1_000_000)
            events.extend(event for event in page.events if until is None or event.seq <= until)
            if not page.events or page.events[-1].seq >= (page.head if until is None else until):
                return events

    async def check(self, conversation_id: str) -> list[Json]:
        """The conversation's messages, after making sure of what always holds.

        Seqs and positions have no holes, the conversation's own numbers are theirs, who replays the log comes to the
        very messages that a window shows, and what the listener was told is what the log says.
        """
        window = await self.window(conversation_id, 1_000_000)
        conversation = await self.conversations.get(TENANT, conversation_id)
        events = await self.events(conversation_id)
        assert [event.seq for event in events] == list(range(1, window.as_of + 1))
        messages = shown(window)
        assert [message["position"] for message in messages] == list(range(1, window.total + 1))
        assert (conversation.message_count, conversation.as_of) == (window.total, window.as_of)
        assert replayed(events) == messages
        self.check_announced(conversation_id, events)
        return messages

    def check_announced(self, conversation_id: str, events: Sequence[LoggedEvent]) -> None:
        """What the listener was told of each event is what the log holds, but for what was deleted since."""
        for append, seq, position in self.committed:
            if append.conversation_id == conversation_id:
                for number, event in enumerate(append.events, seq):
                    stored = events[number - 1]
                    if stored.kind == event.kind:
                        assert stored.payload == fill(event.payload, number, position + event.rank)

    async def execute(self, statement: str, **values: Any) -> list[Any]:
        """Raw SQL, for what no client can do: looking behind the curtain, and making time pass."""
        async with self.database.engine.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    async def everything(self) -> str:
        """All rows of all tables, as one text to look for things in."""
        tables = (
            "conversations",
            "messages",
            "streaming_messages",
            "events",
            "runs",
            "agents",
            "idempotency_keys",
            "credentials",
        )
        # As tuples: rows themselves show only the ends of long texts.
        rows = [tuple(row) for table in tables for row in await self.execute(f"SELECT * FROM {table}")]
        return "\n".join(map(repr, rows))


@asynccontextmanager
async def opened_database(
    url: str, observer: OperationObserver | None = None, **options: Any
) -> AsyncIterator[Database]:
    """A database that is ready; `options` are those of `StorageConfig`."""
    database = Database(StorageConfig(parse_database_url(url), **options), observer or Unobserved())
    await database.start()
    try:
        async with asyncio.timeout(TIMEOUT):
            await database.wait_until_ready()
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def opened(
    url: str, *, commit: CommitConfig | None = None, committers: int = 3, **options: Any
) -> AsyncIterator[Store]:
    """A store on a migrated database; SQLite has one committer whatever `committers` says.

    No windows are kept unless `cache_bytes` says so: what is read is what the database holds.
    """
    async with opened_database(url, **{"cache_bytes": 0, **options}) as database:
        sqlite = database.dialect == "sqlite"
        committed: list[tuple[Append, int, int]] = []
        log = Log(database)
        gate = Gate(SqliteCommitter(database) if sqlite else PostgresqlCommitter(database))
        commits = GroupCommit(
            gate,
            log,
            commit or CommitConfig(),
            lambda append, told: committed.append((append, told.seq, told.position)),
            CommitMetrics(CollectorRegistry()),
            committers=1 if sqlite else committers,
        )
        await commits.start()
        try:
            yield Store(
                database,
                gate,
                commits,
                ConversationLog(database, Appending(database, commits), SHIPPED),
                Conversations(database),
                Messages(database),
                Windows(database, CacheMetrics(CollectorRegistry())),
                log,
                committed,
            )
        finally:
            gate.release()
            await commits.close()


def key(name: str = "key", fingerprint: str = "request", route: str = "POST messages") -> WriteKey:
    return WriteKey("alice", route, name, fingerprint)


def shown(window: Window) -> list[Json]:
    """A window's messages as a client reads them."""
    messages: list[Json] = json.loads(window.items)
    return messages


def replayed(events: Sequence[LoggedEvent]) -> list[Json]:
    """What a reader has who sets each message at its position and appends what deltas bring, nothing else."""
    messages: dict[int, Json] = {}
    for event in events:
        payload = json.loads(event.payload)
        if event.kind == "message.delta":
            messages[payload["position"]]["content"] += payload["text"]
        elif "message" in payload:
            messages[payload["message"]["position"]] = payload["message"]
    return [messages[position] for position in sorted(messages)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.002)


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    """The same for what must be asked."""
    async with asyncio.timeout(TIMEOUT):
        while not await condition():
            await asyncio.sleep(0.01)


async def bounded(*tasks: Awaitable[T], seconds: float = TIMEOUT) -> list[T]:
    """The results of all of them, in a bounded time."""
    async with asyncio.timeout(seconds):
        return list(await asyncio.gather(*tasks))
