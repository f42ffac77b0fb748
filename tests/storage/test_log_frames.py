"""Pages of frames that the database puts together: the same bytes as those that are made here."""

import pytest
from msgspec import Raw, json

from events.frame import event_frame, frame_parts, split_frames
from storage.errors import NotFound
from storage.log_frames import FramesPage
from storage.records import new_id
from tests.storage.store import TENANT, Store
from tests.storage.streaming import stream

# What could be taken for a mark, a brace, a line, or the end of a frame.
_TEXTS = [
    "{",
    "\x01{",
    "\\u0001{",
    "\n\nid: 9@x\n\n",
    "{{{",
    "e\u0301 \U0001f41d \u2028",
    "\x7f",
    '"}',
    "x" * 70_000,
    "",
]


async def _frames(
    store: Store, conversation: str, after: int = 0, limit: int = 100, budget: int = 1_000_000
) -> FramesPage:
    parts = frame_parts(conversation, "k3")
    return await store.log.frames(TENANT, conversation, after, parts, limit=limit, budget=budget)


@pytest.fixture
async def conversation(store: Store) -> str:
    """An event of many kinds each."""
    conversation = await store.conversation()
    await store.post_many(conversation, _TEXTS)
    begun = await stream(store, conversation)
    await begun.add("{\x01{ \U0001f41d")
    await store.writes.update_conversation(
        TENANT, conversation, title="\x01{", metadata=Raw(json.encode({"\x01{": ["\n\n"]})), key=None
    )
    return conversation


async def test_frames_are_those_of_the_events(store: Store, conversation: str) -> None:
    events = await store.events(conversation)
    page = await _frames(store, conversation)
    expected = [event_frame(event.kind, conversation, event.seq, event.payload, "k3") for event in events]
    assert page.data == b"".join(expected)
    assert split_frames(page.data) == expected
    assert (page.floor, page.head, page.deleted, page.first, page.last, page.count) == (
        *(0, len(events), False),
        *(1, len(events), len(events)),
    )
    assert page.epoch == store.database.epoch


async def test_pages_are_bounded_as_those_of_events_are(store: Store, conversation: str) -> None:
    events = await store.events(conversation)
    for after in range(len(events) + 1):
        for limit, budget in ((100, 1), (100, 1_500), (100, 80_000), (3, 1_000_000), (0, 0)):
            page = await _frames(store, conversation, after, limit, budget)
            expected = []
            size = 0
            for event in events[after:][:limit]:
                if size >= budget:
                    break
                expected.append(event)
                size += len(event.payload)
            first, last = (expected[0].seq, expected[-1].seq) if expected else (0, 0)
            assert (page.first, page.last, page.count) == (first, last, len(expected))
            assert len(split_frames(page.data)) == len(expected)


async def test_a_page_above_a_floor_begins_there(store: Store, conversation: str) -> None:
    await store.execute("UPDATE conversations SET floor_seq = 4")
    await store.execute("DELETE FROM events WHERE seq <= 4")
    page = await _frames(store, conversation)
    assert (page.floor, page.first) == (4, 5)


async def test_a_hole_shows(store: Store, conversation: str) -> None:
    await store.execute("DELETE FROM events WHERE seq = 3")
    page = await _frames(store, conversation)
    assert page.last - page.first + 1 == page.count + 1


async def test_what_is_not_the_tenants_is_not_found(store: Store, conversation: str) -> None:
    for tenant, place in (("another", conversation), (TENANT, new_id())):
        with pytest.raises(NotFound):
            await store.log.frames(tenant, place, 0, frame_parts(place, "k3"), limit=10, budget=10)
