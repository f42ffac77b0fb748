"""Windows: any run of messages, anywhere, and true as of one seq."""

import asyncio
import itertools
from typing import Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from storage.errors import NotFound
from storage.records import Window, new_id
from storage.windows import MAX_POSITION, Anchor
from tests.storage.store import TENANT, TIMEOUT, Store, bounded, replayed, shown

Kind = Literal["newest", "from", "before", "after", "around"]

TOTAL = 23
KINDS: tuple[Kind, ...] = ("newest", "from", "before", "after", "around")
# Around the ends there is most to get wrong.
POSITIONS = st.integers(1, TOTAL + 3) | st.sampled_from([10**6, MAX_POSITION])
LIMITS = st.integers(1, TOTAL + 3) | st.just(500)


def model(positions: list[int], anchor: Anchor, limit: int) -> list[int]:
    """What a window is, on a plain list of all positions."""
    match anchor.kind:
        case "newest":
            return positions[-limit:]
        case "from":
            return [position for position in positions if position >= anchor.position][:limit]
        case "after":
            return [position for position in positions if position > anchor.position][:limit]
        case "before":
            return [position for position in positions if position < anchor.position][-limit:]
        case "around":
            first = max(1, min(anchor.position - limit // 2, len(positions) - limit + 1))
            return positions[first - 1 :][:limit]


@pytest.fixture
async def conversation(store: Store) -> str:
    """A conversation among others, with a deleted message in it."""
    others = [await store.conversation(), await store.conversation()]
    conversation = await store.conversation()
    items = await store.post_many(conversation, [str(n) for n in range(1, TOTAL + 1)])
    for other in others:
        await store.post_many(other, ["not asked for"] * TOTAL)
    await store.writes.delete(TENANT, items[11]["id"], key=None)
    return conversation


# Each example only reads, so that all can share the test's database.
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), position=POSITIONS, limit=LIMITS)
@example(kind="before", position=1, limit=5)
@example(kind="after", position=TOTAL, limit=5)
@example(kind="around", position=TOTAL, limit=4)
@example(kind="around", position=1, limit=5)
@example(kind="from", position=MAX_POSITION, limit=500)
async def test_a_window_is_what_a_list_would_give(
    store: Store, conversation: str, kind: Kind, position: int, limit: int
) -> None:
    anchor = Anchor(kind, position)
    window = await store.windows.read(TENANT, conversation, anchor, limit)
    found = shown(window)
    positions = [message["position"] for message in found]
    assert positions == model(list(range(1, TOTAL + 1)), anchor, limit)
    assert {message["conversation_id"] for message in found} <= {conversation}
    assert (window.first, window.last) == ((positions[0], positions[-1]) if positions else (0, 0))
    assert (window.total, window.as_of) == (TOTAL, TOTAL + 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_empty_conversation_has_an_empty_window(store: Store, kind: Kind) -> None:
    conversation = await store.conversation()
    for position in (1, 2, 100):
        window = await store.windows.read(TENANT, conversation, Anchor(kind, position), 50)
        assert (window.items, window.total, window.as_of) == (b"[]", 0, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_conversation_of_one_message_shows_it(store: Store, kind: Kind) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, "alone")
    position = {"before": 2, "after": 0}.get(kind, 1)
    window = await store.windows.read(TENANT, conversation, Anchor(kind, position), 50)
    assert shown(window) == [message]


async def test_what_is_not_the_tenants_is_not_found(store: Store, conversation: str) -> None:
    for tenant, place in (("another", conversation), (TENANT, new_id())):
        for kind in KINDS:
            with pytest.raises(NotFound):
                await store.windows.read(tenant, place, Anchor(kind, 1), 50)


async def test_a_window_is_true_as_of_its_seq_while_others_write(store: Store) -> None:
    conversation = await store.conversation()
    first = await store.post(conversation, "0")
    writing = True

    async def write(number: int) -> None:
        for turn in itertools.count():
            if not writing:
                return
            if turn % 3 == 2:
                await store.edit(first["id"], f"edited {number}.{turn}")
            else:
                await store.post_many(conversation, [f"{number}.{turn}.{n}" for n in range(turn % 3 + 1)])

    writers = [asyncio.create_task(write(number)) for number in range(4)]
    windows: list[Window] = []
    try:
        async with asyncio.timeout(TIMEOUT):
            # On a busy machine all of them may be read before the first write is committed.
            while len(windows) < 60 or windows[-1].as_of == windows[0].as_of:
                anchor = Anchor("from" if len(windows) % 2 else "newest", 1)
                windows.append(await store.windows.read(TENANT, conversation, anchor, 50))
    finally:
        writing = False
        await bounded(*writers)
    events = await store.events(conversation)
    for window in windows:
        state = replayed(events[: window.as_of])
        assert window.total == len(state)
        assert shown(window) == (state[:50] if window.first == 1 else state[-50:])
