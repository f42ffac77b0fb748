"""Streams of a process, of a client's address, and of a principal, are limited; one more comes back later."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from handlers.principal import AUTHENTICATION, Principal
from handlers.resources import HUB
from tests.api import Client, new_conversation
from tests.sse_reader import SseReader, StreamEnded

LIMIT = 3


@asynccontextmanager
async def _opened(client: Client, target: str) -> AsyncIterator[SseReader]:
    assert client.port is not None
    async with SseReader(client.host, client.port, target) as reader:
        yield reader


async def _target(client: Client, kind: str) -> str:
    conversation_id = await new_conversation(client)
    return {
        "one": f"/api/conversations/{conversation_id}/events",
        "several": f"/api/events?conversations={conversation_id}",
        "feed": "/api/events",
    }[kind]


async def _refused(client: Client, target: str) -> None:
    async with _opened(client, target) as reader:
        assert reader.status == 200
        assert reader.answered["content-type"] == "text/event-stream"
        frame = await reader.event()
        assert (frame.event, frame.json, frame.id) == ("drain", {"reason": "limit"}, None)
        retry = (await reader.frame()).retry
        assert retry is not None
        assert 5_000 <= retry <= 15_000, "to come back soon would meet the limit again"
        with pytest.raises(StreamEnded) as ended:
            await reader.frame()
        assert ended.value.clean


@pytest.mark.parametrize(
    "environment",
    [
        {"SWARM_STREAMS": str(LIMIT)},
        {"SWARM_STREAMS_PER_ADDRESS": str(LIMIT)},
        {"SWARM_STREAMS_PER_PRINCIPAL": str(LIMIT)},
    ],
    ids=["of the process", "of the address", "of the principal"],
)
@pytest.mark.parametrize("kind", ["one", "several", "feed"])
async def test_one_more_than_the_limit_is_told_to_come_back_and_finds_room_when_one_has_left(
    client: Client, kind: str
) -> None:
    target = await _target(client, kind)
    hub = client.app[HUB]
    async with AsyncExitStack() as stack:
        others = [await _target(client, other) for other in ("one", "several", "feed")]
        readers = [await stack.enter_async_context(_opened(client, other)) for other in others]
        for reader in readers:
            await reader.until("ready")
        await _refused(client, target)
        await _refused(client, target)
        readers[0].close()
        async with asyncio.timeout(10):
            while hub.streams == LIMIT:
                await asyncio.sleep(0.01)
        newcomer = await stack.enter_async_context(_opened(client, target))
        await newcomer.until("ready")
        await _refused(client, target)


@pytest.mark.parametrize(
    "environment",
    [{"SWARM_STREAMS": str(LIMIT)}, {"SWARM_STREAMS_PER_PRINCIPAL": str(LIMIT)}],
    ids=["of the process", "of the principal"],
)
async def test_readers_that_come_together_do_not_slip_past_the_limit(client: Client) -> None:
    """Whether there is room is asked again when the connection is handed over: between the two, others have come."""
    target = await _target(client, "one")
    heard: list[str] = []

    async def read(stack: AsyncExitStack) -> None:
        reader = await stack.enter_async_context(_opened(client, target))
        heard.append((await reader.event()).event)

    async with AsyncExitStack() as stack:
        await asyncio.gather(*(read(stack) for _ in range(20)))
        assert heard.count("ready") == LIMIT
        assert heard.count("drain") == 20 - LIMIT
        assert client.app[HUB].streams == LIMIT


@pytest.mark.parametrize(
    "environment", [{"SWARM_STREAMS_PER_ADDRESS": "1", "SWARM_STREAMS_PER_PRINCIPAL": "1"}], ids=["of both"]
)
async def test_addresses_and_principals_that_have_gone_are_forgotten(client: Client) -> None:
    target = await _target(client, "feed")
    hub = client.app[HUB]
    for _ in range(5):
        async with _opened(client, target) as reader:
            await reader.until("ready")
            assert (len(hub._streams.by_address), len(hub._streams.by_principal)) == (1, 1)
        async with asyncio.timeout(10):
            while hub.streams:
                await asyncio.sleep(0.01)
    assert (len(hub._streams.by_address), len(hub._streams.by_principal)) == (0, 0)


@pytest.mark.parametrize("environment", [{"SWARM_STREAMS_PER_PRINCIPAL": "1"}], ids=["of the principal"])
async def test_the_streams_of_one_principal_take_no_room_from_another(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await _target(client, "feed")
    names = iter(["ann", "ann", "bob", "bob"])
    speaker = client.app[AUTHENTICATION]
    monkeypatch.setattr(speaker, "recall", lambda request: Principal("default", next(names)))
    async with _opened(client, target) as hers:
        await hers.until("ready")
        await _refused(client, target)
        async with _opened(client, target) as his:
            await his.until("ready")
            await _refused(client, target)
