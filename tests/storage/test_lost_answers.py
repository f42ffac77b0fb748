"""The connection to PostgreSQL fails around a commit: it is carried out once, and its client is told so."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec import UNSET

from events.conversation_log import Draft
from storage.append import Committed, Outcome, Stale
from storage.errors import StorageUnavailable
from storage.idempotency import Answer
from storage.url import parse_database_url
from tests.postgres_server import PostgresServer
from tests.storage.store import TENANT, Json, Store, bounded, key, opened, until, until_true
from tests.storage.streaming import Stream, new_run, run_append, stream
from tests.tcp_proxy import Cut, TcpProxy


class Place(NamedTuple):
    """Where to write: a conversation of four events, a message in it, and one that streams."""

    conversation: str
    message: str
    stream: Stream


Write = Callable[[Store, Place], Awaitable[Answer]]


async def _post(store: Store, place: Place) -> Answer:
    return await store.writes.post(TENANT, place.conversation, [Draft("user", "new words")], many=False, key=None)


async def _post_many(store: Store, place: Place) -> Answer:
    drafts = [Draft("user", "new words"), Draft("user", "and more")]
    return await store.writes.post(TENANT, place.conversation, drafts, many=True, key=key())


async def _edit(store: Store, place: Place) -> Answer:
    return await store.writes.edit(TENANT, place.message, content="new words", metadata=None, key=None)


async def _delete(store: Store, place: Place) -> Answer:
    return await store.writes.delete(TENANT, place.message, key=None)


async def _update(store: Store, place: Place) -> Answer:
    return await store.writes.update_conversation(
        TENANT, place.conversation, title="new words", metadata=UNSET, key=None
    )


async def _add(store: Store, place: Place) -> Answer:
    return _answer(await place.stream.add("new words"))


async def _finish(store: Store, place: Place) -> Answer:
    return _answer(await place.stream.finish())


async def _run(store: Store, place: Place) -> Answer:
    return _answer(await store.commits.submit(run_append(place.conversation, new_run(error="new words"))))


def _answer(outcome: Outcome) -> Answer:
    assert isinstance(outcome, Committed)
    assert len(outcome.epoch) == 6
    return Answer(200, b"")


# What to write, how many events it is, and a text that its statement holds and no other.
WRITES: dict[str, tuple[Write, int, bytes]] = {
    "post": (_post, 1, b"new words"),
    "post many": (_post_many, 2, b"new words"),
    "edit": (_edit, 1, b"new words"),
    "delete": (_delete, 1, b"message.deleted"),
    "update a conversation": (_update, 1, b"new words"),
    "delta": (_add, 1, b"new words"),
    "finish": (_finish, 1, b"message.completed"),
    "run": (_run, 1, b"new words"),
}
each_write = pytest.mark.parametrize(("write", "events", "marker"), WRITES.values(), ids=WRITES)


@pytest.fixture
async def proxy(postgres: PostgresServer) -> AsyncIterator[TcpProxy]:
    async with TcpProxy("127.0.0.1", postgres.port) as proxy:
        yield proxy


@pytest.fixture
async def direct(postgresql_url: str) -> AsyncIterator[Store]:
    """The database as everybody else sees it."""
    async with opened(postgresql_url) as store:
        yield store


def through(proxy: TcpProxy, url: str) -> str:
    dsn = parse_database_url(url).dsn
    place, _, name = dsn.rpartition("/")
    return f"{place.rpartition(':')[0]}:{proxy.port}/{name}"


class Meeting:
    """Does something when a text comes by for the first time."""

    def __init__(self, marker: bytes, then: Callable[[], object]) -> None:
        self.marker, self.then, self.met = marker, then, False

    def __call__(self, chunk: bytes) -> bytes:
        if self.marker in chunk and not self.met:
            self.met = True
            self.then()
        return chunk


def cut() -> None:
    raise Cut


async def _begin(store: Store) -> Place:
    conversation = await store.conversation("old title")
    messages = await store.post_many(conversation, ["one", "two", "three"])
    return Place(conversation, str(messages[1]["id"]), await stream(store, conversation))


async def _check(direct: Store, store: Store, conversation: str, events: int, answer: Answer, write: Write) -> None:
    """It is there once, and both the answer and the listener were told what is there."""
    messages = await direct.check(conversation)
    log = await direct.events(conversation)
    assert len(log) == 4 + events
    store.check_announced(conversation, log)
    assert [seq for append, seq, _ in store.committed if append.conversation_id == conversation] == [1, 4, 5]
    assert not answer.replayed
    if write is _post:
        assert answer.status == 201
        assert json.loads(answer.body) == messages[4]
        assert messages[4]["position"] == 5
    elif write is _post_many:
        assert json.loads(answer.body)["items"] == messages[4:6]
    elif write is _edit:
        assert json.loads(answer.body) == messages[1]
        assert messages[1]["content"] == "new words"
    elif write is _delete:
        assert answer.status == 204
        assert messages[1]["status"] == "deleted"
    elif write is _add:
        assert (messages[3]["content"], messages[3]["status"]) == ("new words", "streaming")
    elif write is _finish:
        assert (messages[3]["content"], messages[3]["status"]) == ("", "complete")
    elif write is _run:
        assert [row[0] for row in await direct.execute("SELECT last_seq FROM runs")] == [5]
    else:
        shown: Json = json.loads(answer.body)
        assert (shown["title"], shown["as_of"], shown["message_count"]) == ("new words", 5, 4)
        assert json.loads((await direct.events(conversation))[-1].payload)["conversation"] == shown


@each_write
async def test_a_connection_that_is_cut_between_commit_and_answer(
    postgresql_url: str, proxy: TcpProxy, direct: Store, write: Write, events: int, marker: bytes
) -> None:
    async with opened(through(proxy, postgresql_url)) as store:
        place = await _begin(store)
        proxy.on_client_data = Meeting(marker, proxy.hold_server_data)
        writing = asyncio.ensure_future(write(store, place))

        async def committed() -> bool:
            return (await direct.conversations.get(TENANT, place.conversation)).as_of == 4 + events

        await until_true(committed)
        assert not writing.done()
        proxy.cut_all()
        proxy.release()
        [answer] = await bounded(writing)
        await _check(direct, store, place.conversation, events, answer, write)


@each_write
async def test_a_connection_that_is_cut_before_the_server_has_the_statement(
    postgresql_url: str, proxy: TcpProxy, direct: Store, write: Write, events: int, marker: bytes
) -> None:
    async with opened(through(proxy, postgresql_url)) as store:
        place = await _begin(store)
        meeting = proxy.on_client_data = Meeting(marker, cut)
        [answer] = await bounded(asyncio.ensure_future(write(store, place)))
        assert meeting.met
        await _check(direct, store, place.conversation, events, answer, write)


@each_write
async def test_an_answer_that_does_not_come_in_time(
    postgresql_url: str, proxy: TcpProxy, direct: Store, write: Write, events: int, marker: bytes
) -> None:
    """The connection stands, and nothing arrives: what the driver does then is give up, and ask the server to stop."""
    async with opened(through(proxy, postgresql_url), command_timeout=0.4) as store:
        place = await _begin(store)
        proxy.on_client_data = Meeting(marker, proxy.hold_server_data)
        connections = proxy.connections
        writing = asyncio.ensure_future(write(store, place))
        await until(lambda: proxy.connections > connections)  # it has given up
        proxy.release()
        [answer] = await bounded(writing)
        await _check(direct, store, place.conversation, events, answer, write)


@each_write
async def test_a_connection_that_is_cut_while_the_server_is_still_at_it(
    postgresql_url: str, proxy: TcpProxy, direct: Store, write: Write, events: int, marker: bytes
) -> None:
    """The server does not look whether its client is there, and commits later than the answer is looked for."""
    async with opened(through(proxy, postgresql_url)) as store:
        place = await _begin(store)
        await direct.execute(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(0.4); RETURN NULL; END'"
        )
        await direct.execute(
            "CREATE TRIGGER slowly BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION slowly()"
        )
        writing = asyncio.ensure_future(write(store, place))

        async def at_it() -> bool:
            return bool(await direct.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))

        await until_true(at_it)
        proxy.cut_all()
        [answer] = await bounded(writing)
        await _check(direct, store, place.conversation, events, answer, write)


async def test_a_deleted_conversation_whose_answer_was_lost(
    postgresql_url: str, proxy: TcpProxy, direct: Store
) -> None:
    async with opened(through(proxy, postgresql_url)) as store:
        conversation = (await _begin(store)).conversation
        proxy.on_client_data = Meeting(b"conversation.deleted", proxy.hold_server_data)
        deletion = asyncio.ensure_future(store.writes.delete_conversation(TENANT, conversation, key=None))

        async def deleted() -> bool:
            return (await direct.log.page(TENANT, conversation, 0, limit=1, budget=1)).deleted

        await until_true(deleted)
        proxy.cut_all()
        proxy.release()
        [answer] = await bounded(deletion)
        assert answer.status == 204
        log = await direct.events(conversation)
        assert [event.kind for event in log][4:] == ["conversation.deleted"]
        store.check_announced(conversation, log)
        assert len(store.committed) == 3


async def test_an_update_whose_answer_was_lost_and_that_others_came_after(
    postgresql_url: str, proxy: TcpProxy, direct: Store
) -> None:
    async with opened(through(proxy, postgresql_url)) as store:
        place = await _begin(store)
        conversation = place.conversation
        proxy.on_client_data = Meeting(b"new words", proxy.hold_server_data)
        update = asyncio.ensure_future(_update(store, place))

        async def updated() -> bool:
            return (await direct.conversations.get(TENANT, conversation)).title == "new words"

        await until_true(updated)
        await direct.post(conversation, "four")
        await direct.writes.update_conversation(TENANT, conversation, title="newer", metadata=UNSET, key=None)
        proxy.cut_all()
        proxy.release()
        [answer] = await bounded(update)
        shown: Json = json.loads(answer.body)
        assert (shown["title"], shown["as_of"], shown["message_count"]) == ("new words", 5, 4)
        log = await direct.events(conversation)
        assert [event.kind for event in log][4:] == ["conversation.updated", "message.created", "conversation.updated"]
        store.check_announced(conversation, log)
        assert (await direct.conversations.get(TENANT, conversation)).title == "newer"


@pytest.mark.parametrize("then", ["more", "run", "deletion"])
async def test_a_delta_or_a_run_whose_answer_was_lost_and_that_others_came_after(
    postgresql_url: str, proxy: TcpProxy, direct: Store, then: str
) -> None:
    async with opened(through(proxy, postgresql_url)) as store:
        place = await _begin(store)
        conversation, message = place.conversation, place.stream
        started = new_run(state="started", error="new words")
        proxy.on_client_data = Meeting(b"new words", proxy.hold_server_data)
        lost = run_append(conversation, started) if then == "run" else message.delta("new words")
        writing = asyncio.ensure_future(store.commits.submit(lost))

        async def committed() -> bool:
            return (await direct.conversations.get(TENANT, conversation)).as_of == 5

        await until_true(committed)
        elsewhere = Stream(direct, conversation, message.id, message.position, "new words")
        if then == "more":
            await elsewhere.add(", and more")
        elif then == "deletion":
            await elsewhere.delete()
        else:
            await direct.commits.submit(run_append(conversation, msgspec.structs.replace(started, state="failed")))
        proxy.cut_all()
        proxy.release()
        [outcome] = await bounded(writing)
        log = await direct.events(conversation)
        assert len(log) == 6
        if then == "deletion":
            assert outcome == Stale()  # nobody can tell any more what it was, and it must not be there again
            assert [event.kind for event in log[3:]] == ["message.deleted"] * 3
        else:
            assert outcome == Committed(5, 0, direct.database.epoch)
        if then == "run":
            assert [row[0] for row in await direct.execute("SELECT state FROM runs")] == ["failed"]
        store.check_announced(conversation, log)
        await direct.check(conversation)


async def test_a_whole_group_whose_answer_was_lost(postgresql_url: str, proxy: TcpProxy, direct: Store) -> None:
    async with opened(through(proxy, postgresql_url), committers=1) as store:
        conversations = [await store.conversation() for _ in range(3)]
        proxy.on_client_data = Meeting(b"new words", proxy.hold_server_data)
        posts = [
            asyncio.ensure_future(store.post(conversations[n % 3], f"new words {n}", key(str(n)) if n % 2 else None))
            for n in range(12)
        ]
        refused = asyncio.ensure_future(store.post(conversations[0], "refused", agent_id="nobody"))

        async def committed() -> bool:
            heads = [(await direct.conversations.get(TENANT, conversation)).as_of for conversation in conversations]
            return heads == [4, 4, 4]

        await until_true(committed)
        proxy.cut_all()
        proxy.release()
        messages = await bounded(*posts)
        with pytest.raises(Exception, match="nobody"):
            await bounded(refused)
        for number, conversation in enumerate(conversations):
            assert await direct.check(conversation) == messages[number::3]


async def test_connections_that_are_cut_again_and_again(postgresql_url: str, proxy: TcpProxy, direct: Store) -> None:
    """Whoever was told 201 is there once; whoever was told nothing asked again, with a key."""
    async with opened(through(proxy, postgresql_url), connect_timeout=2.0) as store:
        conversations = [await store.conversation() for _ in range(3)]
        told: dict[str, Json] = {}

        async def poster(number: int) -> None:
            for turn in range(12):
                content = f"{number}.{turn}"
                while content not in told:
                    try:
                        told[content] = await store.post(conversations[number % 3], content, key(content))
                    except StorageUnavailable:
                        await asyncio.sleep(0.01)

        async def cutter(posters: list[asyncio.Task[None]]) -> None:
            seen = 0

            def goes_on(grown: int) -> bool:
                return grown > seen or all(poster.done() for poster in posters)

            while not all(poster.done() for poster in posters):
                # Each time in the middle of something: as soon as the server has said something new.
                seen = proxy.bytes_from_server + 200
                await until(lambda: goes_on(proxy.bytes_from_server))
                seen = proxy.connections
                proxy.cut_all()
                await until(lambda: goes_on(proxy.connections))
                await asyncio.sleep(0.03)

        posters = [asyncio.create_task(poster(number)) for number in range(6)]
        cutting = asyncio.create_task(cutter(posters))
        results: list[Any] = await bounded(*posters, cutting, seconds=100)
        assert len(results) == 7
        proxy.on_client_data = None
        stored = [message for conversation in conversations for message in await direct.check(conversation)]
        assert sorted(told.values(), key=lambda message: message["id"]) == sorted(
            stored, key=lambda message: message["id"]
        )
