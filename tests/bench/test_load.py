"""The load clients: what they send, and what they count."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from bench.load import Load, LoadError, compiled
from bench.table import Row, as_markdown, ratios, spread
from tests.api import Client, new_conversation

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="a C compiler is not installed (Debian: gcc libc6-dev)"
)


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with compiled() as made:
        yield made


def _port(client: Client) -> int:
    port = client.server.port
    assert port is not None
    return port


@pytest.mark.parametrize("options", [("-c", 3), ("-c", 2, "-b", 5, "-J"), ("-r", 200), ("-r", 200, "-b", 5, "-J")])
async def test_what_is_published_is_counted_at_each_subscriber(
    client: Client, load: Load, options: tuple[object, ...]
) -> None:
    path = f"/api/conversations/{await new_conversation(client)}"

    def measure() -> tuple[dict[str, Any], dict[str, Any]]:
        subscribe = ("-n", 4, "-e", 20, "-d", 20, "-x", "message.created", "-q", "seq")
        with load.streams(_port(client), f"{path}/events", *subscribe) as streams:
            posted = load.publish(_port(client), f"{path}/messages", "-m", 20, "-M", *options)
            return posted, streams.report()

    posted, received = await asyncio.to_thread(measure)
    assert (posted["accepted"], posted["errors"]) == (20, 0)
    assert received["events_per_conn_min"] == received["events_per_conn_max"] == 20
    assert (received["gaps"], received["repeats"], received["events"]) == (0, 0, 80)
    assert 0 < received["latency_ms"]["p50"] <= received["latency_ms"]["p99"] < 20_000


async def test_tokens_of_several_messages(client: Client, load: Load) -> None:
    path = f"/api/conversations/{await new_conversation(client)}"
    streaming = {"role": "agent", "agent_id": "general_01", "status": "streaming"}
    ids = [(await (await client.post(f"{path}/messages", json=streaming)).json())["id"] for _ in range(3)]

    def measure() -> tuple[dict[str, Any], dict[str, Any]]:
        subscribe = ("-n", 2, "-e", 30, "-d", 20, "-x", "message.delta", "-t", "t\\", "-q", "seq")
        with load.streams(_port(client), f"{path}/events", *subscribe) as streams:
            target, names = "/api/messages/{i}/deltas", ",".join(ids)
            posted = load.publish(_port(client), target, "-m", 30, "-r", 300, "-c", 3, "-T", "-I", names, "-s", 120)
            return posted, streams.report()

    posted, received = await asyncio.to_thread(measure)
    assert (posted["accepted"], posted["errors"]) == (30, 0)
    assert (received["events"], received["latency_ms"]["count"]) == (60, 60)
    message = await (await client.get(f"/api/messages/{ids[0]}")).json()
    assert message["content"].count('{"t":') == 10


async def test_requests_and_their_answers(client: Client, load: Load) -> None:
    conversation = await new_conversation(client)
    await client.post(f"/api/conversations/{conversation}/messages", json={"role": "user", "content": "a"})
    target = f"/api/conversations/{conversation}/messages?from={{r}}&limit=5"
    port = _port(client)
    found = await asyncio.to_thread(load.http, port, target, "-c", 3, "-n", 50, "-d", 20, "-r", 3)
    assert (found["answers"], found["refused"], found["broken"]) == (50, 0, 0)
    again = await asyncio.to_thread(load.http, port, target, "-c", 1, "-n", 10, "-d", 20, "-r", 1, "-E")
    assert (again["answers"], again["not_modified"]) == (10, 9)
    refused = await asyncio.to_thread(load.http, port, "/nothing", "-c", 1, "-n", 3, "-d", 20)
    assert refused["refused"] == 3


async def test_a_stream_that_does_not_open_is_an_error(client: Client, load: Load) -> None:
    def measure() -> None:
        with load.streams(_port(client), "/api/nothing", "-n", 2, "-d", 1, ready_within=10):
            pass

    with pytest.raises(LoadError, match="404"):
        await asyncio.to_thread(measure)


def test_a_table_says_what_was_met() -> None:
    rows = [Row("a", "1", "≥ 1", met=True), Row("b", "0", "≥ 1", met=False), Row("c", "2")]
    assert as_markdown(rows).splitlines()[2:] == [
        "| a | 1 | ≥ 1 | yes |  |",
        "| b | 0 | ≥ 1 | **no** |  |",
        "| c | 2 |  |  |  |",
    ]
    assert spread([3.0, 1.0, 2.0], "ms") == "2.0 (1.0–3.0) ms"
    assert ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]
