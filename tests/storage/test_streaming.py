"""Streaming messages: deltas in order, and what else may happen to a message while its text comes."""

import asyncio
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from storage import commit_postgresql
from storage.append import Committed, Refused, Stale
from storage.records import Window, new_id, utf16_length
from storage.rows import from_time
from storage.streaming import StreamingMessage, StreamingMessages
from tests.storage.columns_in_full import in_full
from tests.storage.store import TENANT, Json, Store, bounded, opened, replayed, shown, until
from tests.storage.streaming import Stream, stream

SECRET = "the words that must go"
# What the wire lets through: no NUL, no halves of surrogate pairs.
TEXTS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), max_size=8)


async def _row(store: Store, message_id: str) -> tuple[object, ...]:
    [row] = await store.execute(
        f"SELECT content, status, length, sha256, last_seq FROM messages WHERE id = '{message_id}'"
    )
    return tuple(row)


async def _streaming_rows(store: Store) -> list[tuple[object, ...]]:
    rows = await store.execute(
        "SELECT conversation_id, message_id, tenant, created_seq, last_seq, length FROM streaming_messages"
        " ORDER BY created_seq"
    )
    return [(str(row[0]), str(row[1]), *row[2:]) for row in rows]


async def test_the_text_of_a_streaming_message_is_its_deltas_in_order(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    assert shown(await store.window(conversation))[0]["content"] == ""
    for text in ("Hel", "lo 😀", ", ", "world"):
        assert isinstance(await message.add(text), Committed)
        await store.post(conversation, "another")
    [found, *_] = await store.check(conversation)
    assert (found["content"], found["status"]) == ("Hello 😀, world", "streaming")
    assert (found["length"], found["sha256"]) == (None, None)
    version = await message.version()
    assert (version.last_seq, version.length) == (8, 15)
    assert version.message.content == "Hello 😀, world"
    newest, _ = await store.messages.newest(TENANT, 10, None)
    assert newest[-1] == version.message
    # The message's own row is left alone.
    assert await _row(store, message.id) == ("", "streaming", None, None, 1)
    assert await _streaming_rows(store) == [(conversation, message.id, TENANT, 1, 8, 15)]


# Each example is a message of its own, so that all can share the test's database.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
@example(texts=['"', "\\", "\n\r\u2028", "\x01\x02", "data: x\n\n", "e", "\u0301", "שלום", "👩", "\u200d", "🚀"])
@example(texts=["null", "1", "true", "{}", '{"text":"other"}', " "])
async def test_any_text_is_put_together_as_it_was(store: Store, texts: list[str]) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    for text in texts:
        assert isinstance(await message.add(text), Committed)
    version = await message.version()
    assert version.message.content == "".join(texts)
    assert version.length == utf16_length("".join(texts))
    [streaming] = await store.check(conversation)
    assert isinstance(await message.finish(), Committed)
    [finished] = await store.check(conversation)
    assert finished["content"] == streaming["content"]
    assert finished["length"] == version.length


async def test_a_delta_that_does_not_begin_where_the_text_ends_is_stale(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    assert isinstance(await message.add("😀😀"), Committed)
    for offset in (0, 2, 3, 5, 100):
        assert await message.add("more", offset) == Stale()
    assert isinstance(await message.add("more", 4), Committed)
    [found] = await store.check(conversation)
    assert found["content"] == "😀😀more"
    assert len(await store.events(conversation)) == 3


async def test_only_a_message_that_streams_takes_deltas(store: Store) -> None:
    conversation, other = await store.conversation(), await store.conversation()
    posted = await store.post(conversation, "")
    message = await stream(store, conversation)
    unknown = Stream(store, conversation, new_id(), 1)
    elsewhere = Stream(store, other, message.id, message.position)
    nowhere = Stream(store, new_id(), message.id, message.position)
    assert await Stream(store, conversation, posted["id"], 1).add("text") == Stale()
    assert await unknown.add("text") == Stale()
    assert await elsewhere.add("text") == Stale()
    assert await nowhere.add("text") == Refused("missing")
    assert await message.add("text", tenant="another") == Refused("missing")
    assert len(await store.events(conversation)) == 2
    assert len(await store.events(other)) == 0


async def test_a_finished_message_has_its_text_and_takes_no_more(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    await message.add("all of it 😀")
    assert isinstance(await message.finish(), Committed)
    assert await message.add(" and more") == Stale()
    [found] = await store.check(conversation)
    assert (found["content"], found["status"], found["length"]) == ("all of it 😀", "complete", 12)
    assert (await _row(store, message.id))[:3] == ("all of it 😀", "complete", 12)
    assert await _streaming_rows(store) == []
    version = await message.version()
    assert (version.last_seq, version.length) == (3, 12)
    assert [event.kind for event in await store.events(conversation)] == [
        "message.created",
        "message.delta",
        "message.completed",
    ]


async def test_a_finished_message_is_read_without_its_events(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    await message.add("text")
    await message.finish()
    before = await store.window(conversation)
    await store.execute("UPDATE events SET payload = 'not even JSON' WHERE kind = 'message.delta'")
    assert await store.window(conversation) == before


async def test_what_was_decided_before_the_latest_delta_is_stale(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    before = await message.version()
    await message.add("came meanwhile")
    for write in (message.finish, message.delete, lambda found: message.call({"id": "1"}, found)):
        assert await write(before) == Stale()
    assert len(await store.events(conversation)) == 2
    assert isinstance(await message.finish(), Committed)
    [found] = await store.check(conversation)
    assert found["content"] == "came meanwhile"


async def test_a_tool_call_leaves_the_text_and_the_stream_as_they_are(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    await message.add("let me see ")
    before = await message.version()
    assert isinstance(await message.call({"id": "1", "tool": "search"}), Committed)
    after = await message.version()
    assert (after.last_seq, after.length) == (3, before.length)
    assert json.loads(bytes(after.message.tool_calls)) == [{"id": "1", "tool": "search"}]
    assert after.message.content == "let me see "
    # Its text stays in its deltas, and both rows know what touched it last.
    assert await _row(store, message.id) == ("", "streaming", None, None, 3)
    assert await _streaming_rows(store) == [(conversation, message.id, TENANT, 1, 3, 11)]
    assert await message.finish(before) == Stale()
    assert isinstance(await message.add("here it is"), Committed)
    assert isinstance(await message.finish(), Committed)
    [found] = shown(await store.window(conversation))
    assert found["content"] == "let me see here it is"
    assert found["tool_calls"] == [{"id": "1", "tool": "search"}]


async def test_a_message_that_is_deleted_while_it_streams_is_gone_with_its_deltas(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    await message.add("the words")
    await message.add(" that must go")
    assert "the words" in await store.everything()
    assert isinstance(await message.delete(), Committed)
    everything = await store.everything()
    assert "the words" not in everything
    assert "must go" not in everything
    assert await message.add(" and more") == Stale()
    assert [event.kind for event in await store.events(conversation)] == ["message.deleted"] * 4
    [found] = await store.check(conversation)
    assert (found["status"], found["content"]) == ("deleted", "")
    assert await _streaming_rows(store) == []


async def test_a_deleted_conversation_takes_no_deltas(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    await store.writes.delete_conversation(TENANT, conversation, key=None)
    assert await message.add("text") == Refused("missing")


async def test_two_deltas_of_one_message_are_never_in_one_group(database_url: str) -> None:
    async with opened(database_url, committers=1) as store:
        conversation, plug = await store.conversation(), await store.conversation()
        message, other = await stream(store, conversation), await stream(store, conversation)
        store.gate.hold()
        plugged = asyncio.create_task(store.post(plug, "keeps the only committer busy"))
        await until(lambda: store.gate.groups[-1][0].conversation_id == plug)
        before = len(store.gate.groups)
        deltas = [
            asyncio.create_task(store.commits.submit(append))
            for append in (
                message.delta("one", 0),
                other.delta("eins", 0),
                message.delta("two", 3),
                other.delta("zwei", 4),
                message.delta("three", 6),
            )
        ]
        await until(lambda: store.waiting == len(deltas))
        store.gate.release()
        await bounded(plugged)
        assert all(isinstance(outcome, Committed) for outcome in await bounded(*deltas))
        found = await store.check(conversation)
        assert [shown["content"] for shown in found] == ["onetwothree", "einszwei"]
        groups = [[append.delta.message_id for append in group if append.delta] for group in store.gate.groups[before:]]
        assert groups == [[message.id, other.id], [message.id, other.id], [message.id]]


async def test_a_stale_delta_spoils_nothing_else_of_its_group(database_url: str) -> None:
    async with opened(database_url, committers=1) as store:
        conversation = await store.conversation()
        streams = [await stream(store, conversation) for _ in range(4)]
        finished = streams[3]
        await finished.add("text")
        version = await finished.version()
        before = len(store.gate.groups)
        store.gate.hold()
        plugged = asyncio.create_task(store.post(await store.conversation(), "keeps the only committer busy"))
        await store.gate.arrived(before + 1)
        good = asyncio.create_task(streams[0].add("good"))
        bad = asyncio.create_task(streams[1].add("bad", 7))
        finish = asyncio.create_task(finished.finish(version))
        fine = asyncio.create_task(streams[2].add("fine"))
        post = asyncio.create_task(store.post(conversation, "a message"))
        await until(lambda: store.waiting == 5)
        store.gate.release()
        await bounded(plugged, post)
        outcomes = await bounded(good, bad, finish, fine)
        assert [type(outcome) for outcome in outcomes] == [Committed, Stale, Committed, Committed]
        assert len(store.gate.groups[before + 1]) == 5
        contents = [found["content"] for found in await store.check(conversation)]
        assert contents == ["good", "", "fine", "text", "a message"]


async def test_of_many_deltas_at_one_offset_one_is_taken(database_url: str) -> None:
    """By two processes, as it were: each has its own queue."""
    async with opened(database_url) as here, opened(database_url) as there:
        conversation = await here.conversation()
        message = await stream(here, conversation)
        for turn in range(10):
            texts = [f"{turn}.{n}" for n in range(6)]
            appends = [message.delta(text) for text in texts]
            outcomes = await bounded(
                *[store.commits.submit(append) for store, append in zip([here, there] * 3, appends, strict=True)]
            )
            [taken] = [text for text, outcome in zip(texts, outcomes, strict=True) if isinstance(outcome, Committed)]
            assert outcomes.count(Stale()) == 5
            message.text += taken
        assert (await message.version()).message.content == message.text
        assert len(await here.events(conversation)) == 11


@pytest.mark.parametrize("ending", ["finish", "delete"])
async def test_an_ending_and_a_delta_at_once_are_one_of_them(database_url: str, ending: str) -> None:
    async with opened(database_url) as here, opened(database_url) as there:
        conversation = await here.conversation()
        # What either process wrote first would be in the other's way: both are ready before any of them begins.
        messages = [await stream(here, conversation) for _ in range(12)]
        for message in messages:
            await message.add("before")
        versions = [await message.version() for message in messages]
        for number, (message, version) in enumerate(zip(messages, versions, strict=True)):
            elsewhere = Stream(there, conversation, message.id, message.position, message.text)
            end = message.finish if ending == "finish" else message.delete
            # In turn, so that each of them comes first now and then.
            racers = [end(version), elsewhere.add(" and after")]
            outcomes = await bounded(*(racers if number % 2 else racers[::-1]))
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Committed", "Stale"]
        ended = "complete" if ending == "finish" else "deleted"
        here.committed += there.committed
        for found in await here.check(conversation):
            content = {"complete": "before", "deleted": "", "streaming": "before and after"}[found["status"]]
            assert found["content"] == content
            assert found["status"] in {ended, "streaming"}


async def test_a_window_shows_the_text_as_of_its_seq_while_it_is_written(store: Store) -> None:
    conversation = await store.conversation()
    writing = True

    async def write(number: int) -> None:
        while writing:
            message = await stream(store, conversation)
            for turn in range(12):
                assert isinstance(await message.add(f"{number}.{turn} 😀 "), Committed)
            if number % 2:
                assert isinstance(await message.finish(), Committed)

    writers = [asyncio.create_task(write(number)) for number in range(4)]
    windows: list[Window] = []
    versions = []
    try:
        await until(lambda: len(store.committed) > 8)
        # A slow disk may not have committed anything more by the thirtieth.
        while len(windows) < 30 or (windows[-1].as_of == windows[0].as_of and len(windows) < 3_000):
            windows.append(await asyncio.wait_for(store.window(conversation, limit=20), 30))
            latest = shown(windows[-1])[-1]["id"]
            versions.append(await asyncio.wait_for(store.messages.get_versioned(TENANT, latest), 30))
    finally:
        writing = False
        await bounded(*writers)
    assert windows[-1].as_of > windows[0].as_of
    events = await store.events(conversation)
    streaming = 0
    for window in windows:
        found = shown(window)
        assert found == replayed(events[: window.as_of])[-20:]
        streaming += sum(message["status"] == "streaming" and message["content"] != "" for message in found)
    assert streaming > 0
    for version in versions:
        # Text, length and seq of one moment: what the log held up to that seq.
        [told] = [message for message in replayed(events[: version.last_seq]) if message["id"] == version.message.id]
        assert told["content"] == version.message.content
        assert version.length == utf16_length(version.message.content)


async def test_the_messages_that_stream_are_known(store: Store) -> None:
    streaming = StreamingMessages(store.database)
    conversation, gone = await store.conversation(), await store.conversation()
    assert await streaming.all() == []
    first, second, deleted = [await stream(store, conversation) for _ in range(3)]
    await stream(store, gone)
    await second.add("text")
    await deleted.delete()
    await store.writes.delete_conversation(TENANT, gone, key=None)
    found = sorted(await streaming.all(), key=lambda message: message.last_seq)
    assert found == [
        StreamingMessage(TENANT, conversation, first.id, 1),
        StreamingMessage(TENANT, conversation, second.id, 4),
    ]
    await first.finish()
    await second.finish(status="failed")
    assert await streaming.all() == []


async def test_every_event_knows_when_it_was_appended(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    await message.add("text")
    await store.post_many(conversation, ["one", "two"])
    await message.finish()
    times = [
        append.at for append, _, _ in store.committed for _ in append.events if append.conversation_id == conversation
    ]
    rows = await store.execute("SELECT at FROM events ORDER BY seq")
    assert [from_time(row[0]) for row in rows] == times


async def test_an_outcome_knows_the_epoch_of_its_seqs(store: Store) -> None:
    conversation = await store.conversation()
    message = await stream(store, conversation)
    outcome = await message.add("of the old timeline")
    assert isinstance(outcome, Committed)
    assert outcome.epoch == store.database.epoch
    await store.execute("UPDATE timeline SET epoch = 'afresh'")
    outcome = await message.add(", of the new")
    assert isinstance(outcome, Committed)
    assert outcome.epoch == "afresh" != store.database.epoch


async def test_a_message_that_an_older_version_has_ended_streams_no_more(store: Store) -> None:
    """Of the version before this one, which knows nothing of streams, some servers may still be there."""
    conversation = await store.conversation()
    message = await stream(store, conversation)
    await message.add("text")
    await store.execute("UPDATE conversations SET last_seq = 3")
    await store.execute(f"UPDATE messages SET status = 'deleted', last_seq = 3 WHERE id = '{message.id}'")
    assert await message.add("more") == Stale()
    assert (await message.version()).last_seq == 3
    assert await StreamingMessages(store.database).all() == []
    assert isinstance(await message.delete(), Committed)
    assert await _streaming_rows(store) == []


@pytest.mark.parametrize("version", [1, 2])
async def test_the_functions_of_the_versions_before_still_commit(
    version: int, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgresql_url) as store:
        call = commit_postgresql._CALL.replace("commit_group_3", f"commit_group_{version}")
        if version == 1:
            call = call.replace("epoch", "(SELECT epoch FROM timeline)")
        monkeypatch.setattr(commit_postgresql, "_CALL", call)
        monkeypatch.setattr(commit_postgresql, "_tables", in_full)
        conversation = await store.conversation()
        messages: list[Json] = await store.post_many(conversation, ["one", "two"])
        edited = await store.edit(messages[0]["id"], "changed")
        assert await store.check(conversation) == [edited, messages[1]]
