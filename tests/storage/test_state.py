"""The state since a seq: everything that was touched, once, as one snapshot has it; at the same price anywhere."""

import asyncio
import json
import random
import re

import msgspec
import pytest
from msgspec import UNSET

from events.vocabulary import encode_record, message_event, message_row
from storage.append import Append, Committed
from storage.errors import NotFound
from storage.records import Conversation, Message, Run, StateItem, StatePage, new_id, now
from storage.state import MOST_ITEMS, STATE_PAGE
from tests import proof
from tests.storage.author import Author, run_event, shown_items, state_by_the_log
from tests.storage.store import TENANT, Store, bounded, opened
from tests.storage.streaming import new_message, new_run


async def _page(store: Store, conversation: str, after: int, limit: int = 500, budget: int = 1_000_000) -> StatePage:
    return await store.log.state(TENANT, conversation, after, limit=limit, budget=budget)


async def _whole(store: Store, conversation: str, after: int) -> list[StateItem]:
    """All that was touched, of a conversation that rests."""
    page = await _page(store, conversation, after)
    assert page.complete
    return page.items


async def _walk(store: Store, conversation: str, limit: int, budget: int = 1_000_000) -> list[list[StateItem]]:
    """The pages, one after the other, of a conversation that rests."""
    pages: list[list[StateItem]] = []
    after = 0
    while True:
        page = await _page(store, conversation, after, limit, budget)
        pages.append(page.items)
        if page.complete:
            return pages
        assert page.items
        after = page.items[-1].seq


@pytest.fixture
async def busy(store: Store) -> str:
    """A conversation in which everything has happened: posted, edited, deleted, streamed; tools, runs, a new title."""
    conversation = await store.conversation("title")
    author = Author(store, conversation)
    edited, deleted, _ = await store.post_many(conversation, ["edited", "deleted", "as it was"])
    run, finished, streaming, silent = (
        new_run(),
        await author.begin(),
        await author.begin(),
        await author.begin(),
    )
    await author.set_run(run)
    for n in range(5):
        await author.say(finished, f"finished {n} 🙂")
        await author.say(streaming, f"streaming {n} e\u0301")
    await author.call_tool(finished, {"id": "1", "name": "look"})
    await store.edit(edited["id"], "has been edited")
    await author.call_tool(streaming, {"id": "2", "name": "look"})
    await store.writes.update_conversation(TENANT, conversation, title="another title", metadata=UNSET, key=None)
    await author.finish(finished)
    await store.writes.delete(TENANT, deleted["id"], key=None)
    await author.set_run(new_run(state="failed", id=run.id, error="why", started_at=now(), ended_at=now()))
    await author.set_run(new_run())
    await author.say(streaming, "\n")
    assert author.streams.keys() == {streaming, silent}
    return conversation


async def test_everything_that_was_touched_is_given_once_as_it_is_now(store: Store, busy: str) -> None:
    events = await store.events(busy)
    items = await _whole(store, busy, 0)
    # The deletion has made tombstones of what the deleted message went through; its own event stands for it.
    assert shown_items(items) == state_by_the_log(events)
    kinds = [type(item.record) for item in items]
    assert (kinds.count(Message), kinds.count(Run), kinds.count(Conversation)) == (6, 2, 1)
    assert {item.record.status for item in items if isinstance(item.record, Message)} == {
        "complete",
        "deleted",
        "streaming",
    }


async def test_only_what_was_touched_since_is_given(store: Store, busy: str) -> None:
    events = await store.events(busy)
    for after in range(len(events) + 2):
        page = await _page(store, busy, after)
        assert shown_items(page.items) == state_by_the_log(events, after)
        assert (page.floor, page.head, page.deleted, page.complete) == (0, len(events), False, True)
        assert page.epoch == store.database.epoch


async def test_a_conversation_is_given_as_of_the_head(store: Store, busy: str) -> None:
    page = await _page(store, busy, 0)
    [conversation] = [item.record for item in page.items if isinstance(item.record, Conversation)]
    assert conversation == await store.conversations.get(TENANT, busy)
    assert conversation.as_of == page.head


async def test_a_streaming_message_is_given_with_its_text_so_far_and_the_seq_of_its_last_delta(store: Store) -> None:
    conversation = await store.conversation()
    author = Author(store, conversation)
    message = await author.begin()
    for text in ("", "a", "🙂", "e\u0301", "שלום", '"\\\n\u2028', " "):
        seq = await author.say(message, text)
        for after in (0, 1, seq - 1):
            [item] = await _whole(store, conversation, after)
            assert isinstance(item.record, Message)
            assert (item.seq, item.record.status, item.record.length) == (seq, "streaming", None)
            assert item.record.content == author.streams[message].text
            assert item.record == await store.messages.get(TENANT, message)
        assert await _whole(store, conversation, seq) == []
    seq = await author.finish(message)
    [item] = await _whole(store, conversation, 0)
    assert isinstance(item.record, Message)
    assert (item.seq, item.record.status, item.record.length) == (seq, "complete", 14)


async def test_a_tool_call_is_given_inside_its_streaming_message(store: Store) -> None:
    conversation = await store.conversation()
    author = Author(store, conversation)
    message = await author.begin()
    await author.say(message, "Let me look. ")
    seq = await author.call_tool(message, {"id": "1"})
    [item] = await _whole(store, conversation, 2)
    assert isinstance(item.record, Message)
    assert (item.seq, item.record.content, json.loads(bytes(item.record.tool_calls))) == (
        seq,
        "Let me look. ",
        [{"id": "1"}],
    )


async def test_pages_together_are_the_whole_state(store: Store, busy: str) -> None:
    whole = await _whole(store, busy, 0)
    for limit in range(1, len(whole) + 2):
        pages = await _walk(store, busy, limit)
        assert [item for page in pages for item in page] == whole
        assert all(len(page) == limit for page in pages[:-1])
        assert 0 < len(pages[-1]) <= limit


async def test_a_page_ends_with_the_item_that_uses_up_its_budget(store: Store) -> None:
    conversation = await store.conversation()
    author = Author(store, conversation)
    await store.post_many(conversation, ["x" * 1_000, "🙂" * 500, "x"])
    message = await author.begin()
    await author.say(message, "y" * 1_000)
    await store.post(conversation, "z")
    for budget, sizes in ((1, [1, 1, 1, 1, 1]), (1_000, [1, 1, 2, 1]), (1_100, [2, 3]), (4_000, [5])):
        pages = await _walk(store, conversation, 100, budget)
        assert [len(page) for page in pages] == sizes
        assert [item for page in pages for item in page] == await _whole(store, conversation, 0)


async def test_tool_calls_and_metadata_count_for_the_budget(store: Store) -> None:
    conversation = await store.conversation()
    author = Author(store, conversation)
    for _ in range(3):
        await author.call_tool(await author.begin(), {"result": "é" * 1_000})
    assert [len(page) for page in await _walk(store, conversation, 100, 1_500)] == [1, 1, 1]
    assert [len(page) for page in await _walk(store, conversation, 100, 2_500)] == [2, 1]


async def test_no_page_is_empty_while_something_is_left(store: Store, busy: str) -> None:
    whole = await _whole(store, busy, 0)
    for limit, budget in ((0, 0), (0, 1_000), (1_000, 0)):
        assert [page for pages in await _walk(store, busy, limit, budget) for page in pages] == whole


async def test_a_page_never_ends_between_items_of_one_seq(store: Store) -> None:
    """A reader goes on after the seq of what it had last."""
    conversation = await store.conversation()
    for n in range(4):
        message, run = new_message(conversation), new_run()
        message = msgspec.structs.replace(message, content="x" * 100 * n, length=100 * n, status="complete")
        created = message_event("message.created", message.id, encode_record(message))
        append = Append(
            TENANT,
            conversation,
            now(),
            events=[created, run_event(conversation, run)],
            answer=b"",
            status=200,
            messages=[message_row(message)],
            run=run,
        )
        assert isinstance(await store.commits.submit(append), Committed)
    whole = await _whole(store, conversation, 0)
    assert [type(item.record) for item in whole] == [Message, Run] * 4
    assert len({item.seq for item in whole}) == 4
    for limit, budget in ((1, 1_000_000), (2, 1_000_000), (3, 1_000_000), (100, 1), (100, 150), (100, 250)):
        pages = await _walk(store, conversation, limit, budget)
        assert [item for page in pages for item in page] == whole
        assert all(len(page) % 2 == 0 for page in pages)


async def test_a_limit_beyond_what_a_page_may_hold_is_that(store: Store) -> None:
    conversation = await store.conversation()
    await store.post_many(conversation, ["x"] * (MOST_ITEMS + 5))
    page = await _page(store, conversation, 0, limit=1_000_000, budget=1_000_000)
    assert (len(page.items), page.complete) == (MOST_ITEMS, False)
    page = await _page(store, conversation, page.items[-1].seq, limit=1_000_000, budget=1_000_000)
    assert (len(page.items), page.complete) == (5, True)


async def test_exactly_as_many_as_the_limit_are_complete(store: Store) -> None:
    conversation = await store.conversation()
    await store.post_many(conversation, ["x"] * 3)
    assert [(len(page.items), page.complete) for page in [await _page(store, conversation, 0, 3)]] == [(3, True)]
    assert [(len(page.items), page.complete) for page in [await _page(store, conversation, 0, 2)]] == [(2, False)]


async def test_a_conversation_in_which_nothing_happened_has_no_state(store: Store) -> None:
    page = await _page(store, await store.conversation("title"), 0)
    assert page == StatePage(store.database.epoch, 0, 0, False, True, [])


async def test_a_page_brings_floor_and_epoch_as_they_are_now(store: Store, busy: str) -> None:
    before = await _page(store, busy, 3)
    await store.execute("UPDATE timeline SET epoch = 'another'")
    await store.execute("UPDATE conversations SET floor_seq = 2")
    after = await _page(store, busy, 3)
    assert (after.epoch, after.floor, after.items) == ("another", 2, before.items)


async def test_a_deleted_conversation_says_so(store: Store, busy: str) -> None:
    await store.writes.delete_conversation(TENANT, busy, key=None)
    page = await _page(store, busy, 0)
    assert page.deleted
    assert page.head == (await store.events(busy))[-1].seq


async def test_what_is_not_the_tenants_is_not_found(store: Store, busy: str) -> None:
    for tenant, place in (("another", busy), (TENANT, new_id())):
        with pytest.raises(NotFound):
            await store.log.state(tenant, place, 0, limit=10, budget=10)


async def test_other_conversations_are_not_in_the_state(store: Store, busy: str) -> None:
    other = await store.conversation()
    await store.post(other, "here")
    assert [item.seq for item in await _whole(store, other, 0)] == [1]
    assert shown_items(await _whole(store, busy, 0)) == state_by_the_log(await store.events(busy))


@pytest.mark.proof
async def test_a_page_is_one_snapshot_while_writers_go_on(store: Store) -> None:
    """Each page that was read meanwhile is, to the letter, what the log up to its head makes of it."""
    conversation = await store.conversation()
    turns = proof.count(12, 200)
    seen: list[tuple[int, int, int, StatePage]] = []
    writing = True

    async def write(number: int) -> None:
        author, chance = Author(store, conversation), random.Random(number)
        for turn in range(turns):
            if number == 0:
                posted = await store.post(conversation, f"whole {turn}")
                await store.edit(posted["id"], f"edited {turn}")
                title = f"title {turn}"
                await store.writes.update_conversation(TENANT, conversation, title=title, metadata=UNSET, key=None)
                continue
            run = new_run(state="running")
            await author.set_run(run)
            message = await author.begin()
            for _ in range(chance.randrange(6)):
                await author.say(message, chance.choice(["🙂", "word ", "e\u0301", "ש", ""]))
                if chance.random() < 0.2:
                    await author.call_tool(message, {"turn": turn})
            await author.finish(message)
            await author.set_run(new_run(state="succeeded", id=run.id, message_id=message))

    async def read(number: int) -> None:
        chance = random.Random(100 + number)
        head = 0
        while writing:
            after, limit = chance.randrange(head + 1), chance.choice([1, 3, 10, 500])
            budget = chance.choice([50, 500, 1_000_000])
            page = await _page(store, conversation, after, limit, budget)
            assert page.head >= head
            head = page.head
            seen.append((after, limit, budget, page))
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read(number)) for number in range(3)]
    try:
        await bounded(*[write(number) for number in range(5)], seconds=60.0 if not proof.is_full() else 1_800.0)
    finally:
        writing = False
        await asyncio.gather(*readers)
    events = await store.events(conversation)
    assert len(seen) > turns
    assert any(not page.complete for *_, page in seen)
    for after, limit, budget, page in seen:
        expected = state_by_the_log(events[: page.head], after)
        items = shown_items(page.items)
        assert items == expected[: len(items)]
        assert page.complete == (len(items) == len(expected))
        if not page.complete:
            assert items
            assert len(items) == limit or _size(items) >= budget
    proof.record("state pages read among five writers, each exact", store.database.dialect, len(seen))


def _size(items: list[tuple[int, dict[str, object]]]) -> int:
    return len(json.dumps([item for _, item in items], ensure_ascii=False))


async def _fill(store: Store, conversation: str, messages: int) -> None:
    """Many messages, there and in two other conversations, without an append for each."""
    for place in (conversation, await store.conversation(), await store.conversation()):
        await store.execute(
            "INSERT INTO messages (tenant, id, conversation_id, position, role, content, status, tool_calls, metadata,"
            f" length, created_at, updated_at, last_seq) SELECT '{TENANT}', gen_random_uuid(), '{place}', n, 'user',"
            f" 'text', 'complete', '[]', '{{}}', 4, now(), now(), n FROM generate_series(1, {messages}) AS n"
        )
        numbers = f"last_seq = {messages}, message_count = {messages}, floor_seq = {messages}"
        await store.execute(f"UPDATE conversations SET {numbers} WHERE id = '{place}'")


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
async def test_postgresql_reads_ranges_of_indexes_for_a_page(postgresql_url: str, mode: str) -> None:
    """Where there are many messages: with the plan that it keeps for any parameters, and with one for these."""
    async with opened(postgresql_url) as store:
        conversation = await store.conversation()
        await _fill(store, conversation, 20_000)
        author = Author(store, conversation)
        for _ in range(5):
            await author.say(await author.begin(), "text")
        await store.execute("ANALYZE")
        async with store.database.driver() as driver:
            await driver.execute(f"SET plan_cache_mode = {mode}; PREPARE page AS {STATE_PAGE.text('postgresql')}")
            for after, limit in ((0, 10), (10_000, 10), (19_995, 500), (0, 500)):
                values = {"conversation_id": conversation, "tenant": TENANT, "after": after, "limit": limit}
                arguments = ", ".join(
                    f"'{value}'" if isinstance(value, str) else str(value)
                    for value in STATE_PAGE.arguments("postgresql", values | {"budget": 1_000_000})
                )
                rows = await driver.fetch(f"EXPLAIN (ANALYZE, BUFFERS) EXECUTE page ({arguments})")
                plan = "\n".join(row[0] for row in rows)
                assert "Seq Scan on messages" not in plan, plan
                assert "ix_messages_conversation_id_last_seq" in plan, plan
                buffers = re.search(r"Buffers: shared hit=(\d+)(?: read=(\d+))?", plan)
                assert buffers is not None
                # The ranges of the indexes, up to the most that a page may hold, and a few pages for each item.
                assert sum(map(int, buffers.groups("0"))) < MOST_ITEMS + 6 * limit, plan


async def test_sqlite_reads_ranges_of_indexes_for_a_page(sqlite_url: str) -> None:
    values = {"conversation_id": new_id(), "tenant": TENANT, "after": 0, "limit": 10, "budget": 10}
    async with opened(sqlite_url) as store, store.database.driver() as driver:
        arguments = STATE_PAGE.arguments("sqlite", values)
        rows = await driver.execute_fetchall(f"EXPLAIN QUERY PLAN {STATE_PAGE.text('sqlite')}", arguments)
    steps = [row[3] for row in rows]
    assert (
        "SEARCH messages USING INDEX ix_messages_conversation_id_last_seq (conversation_id=? AND last_seq>?)" in steps
    )
    assert "SEARCH runs USING INDEX ix_runs_conversation_id_last_seq (conversation_id=? AND last_seq>?)" in steps
    assert not [
        step for step in steps if re.match(r"SCAN (messages|streaming_messages|events|runs|conversations|head)\b", step)
    ]
