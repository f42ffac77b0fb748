"""What the server shows of itself moves when the thing itself happens."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from handlers.resources import DATABASE, EXPOSITION, HUB, INSTRUMENTS
from metrics.instruments import Instruments
from storage.retention import Retention
from storage.timeline import new_epoch
from tests.api import Client, new_conversation, post_messages
from tests.figures import Figures, read_figures
from tests.metrics.promtool import check
from tests.sse_reader import SseReader

ROOT = Path(__file__).parents[2]
MESSAGES = "/api/conversations/{conversation_id}/messages"
EVENTS = "/api/conversations/{conversation_id}/events"
DURATION = "http_server_request_duration_seconds"
SMALL_RING = {"SWARM_STREAM_RING": "1024"}


def _stream(client: Client, conversation: str, query: str = "", **headers: str) -> SseReader:
    assert client.port is not None
    target = f"/api/conversations/{conversation}/events{query}"
    return SseReader(client.host, client.port, target, {name.replace("_", "-"): headers[name] for name in headers})


def _many(client: Client, conversations: str, **headers: str) -> SseReader:
    assert client.port is not None
    target = f"/api/events?conversations={conversations}"
    return SseReader(client.host, client.port, target, {name.replace("_", "-"): headers[name] for name in headers})


async def _until(client: Client, condition: Callable[[Figures], Any]) -> Figures:
    async with asyncio.timeout(20):
        while not condition(figures := await read_figures(client)):
            await asyncio.sleep(0.02)
    return figures


async def _outcomes(client: Client) -> dict[str, float]:
    """How many places there were of each, without those of which there were none."""
    figures = await read_figures(client)
    counted = {
        outcome: figures.get("swarm_stream_resumes_total", outcome=outcome)
        for outcome in ("live", "ring", "events", "state", "reset")
    }
    return {outcome: count for outcome, count in counted.items() if count}


async def _at_ready(reader: SseReader) -> None:
    async with reader:
        await reader.until("ready")


# The format.


async def test_the_text_format_is_what_is_given_unless_another_is_asked_for(client: Client) -> None:
    response = await client.get("/metrics")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"
    assert "# TYPE swarm_streams_open gauge\n" in await response.text()


async def test_open_metrics_is_given_to_who_asks_for_it(client: Client) -> None:
    # As Prometheus 3 asks.
    accept = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3"
    response = await client.get("/metrics", headers={"Accept": accept})
    assert response.content_type == "application/openmetrics-text"
    assert (await response.text()).endswith("# EOF\n")


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=newest", "image/png", "text/plain;version=;"])
async def test_what_nobody_can_make_sense_of_gets_the_text_format(client: Client, accept: str) -> None:
    response = await client.get("/metrics", headers={"Accept": accept})
    assert (response.status, response.content_type) == (200, "text/plain")


async def test_the_head_alone_can_be_asked_for(client: Client) -> None:
    response = await client.head("/metrics")
    assert (response.status, await response.read()) == (200, b"")


async def test_it_is_rendered_outside_the_loop_s_thread(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered_in: list[int] = []

    def render(accept: str) -> tuple[bytes, str]:
        rendered_in.append(threading.get_ident())
        return b"", "text/plain"

    monkeypatch.setattr(client.app[EXPOSITION], "render", render)
    assert (await client.get("/metrics")).status == 200
    assert threading.get_ident() not in rendered_in
    assert rendered_in


async def test_it_shows_no_figure_of_another_application(client: Client) -> None:
    Instruments().requests.answered("GET", "/elsewhere", 200, 0.1)
    assert "/elsewhere" not in await (await client.get("/metrics")).text()


# Requests.


async def test_a_request_is_counted_under_its_method_its_route_s_template_and_its_status(client: Client) -> None:
    for _ in range(2):
        await post_messages(client, await new_conversation(client), 1)
    assert (await client.get("/api/messages/0197a1c2-0000-7000-8000-000000000000")).status == 404
    figures = await read_figures(client)
    written = {"http_request_method": "POST", "http_route": MESSAGES, "http_response_status_code": "201"}
    assert figures.get(f"{DURATION}_count", **written) == 2
    assert 0 < figures.get(f"{DURATION}_sum", **written) < 20
    refused = {"http_request_method": "GET", "http_route": "/api/messages/{message_id}"}
    assert figures.get(f"{DURATION}_count", **refused, http_response_status_code="404") == 1


async def test_paths_and_methods_that_are_none_make_no_series_of_their_own(client: Client) -> None:
    for method in ("PROPFIND", "MKCOL", "PURGE"):
        assert (await client.get(f"/made-up/{method}")).status == 404
        assert (await client.request(method, "/api/agents")).status == 405
    figures = await read_figures(client)
    assert figures.get(f"{DURATION}_count", http_route="_NONE", http_request_method="GET") == 3
    assert figures.get(f"{DURATION}_count", http_route="_NONE", http_request_method="_OTHER") == 3
    text = await (await client.get("/metrics")).text()
    assert "made-up" not in text
    assert "PURGE" not in text


async def test_what_the_parser_refuses_is_counted(client: Client) -> None:
    assert client.port is not None
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"GET / HTTP/nine\r\n\r\n")
    async with asyncio.timeout(20):
        assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
    writer.close()
    figures = await read_figures(client)
    assert figures.get(f"{DURATION}_count", http_route="_NONE", http_response_status_code="400") == 1


async def test_a_client_that_goes_away_before_its_answer_is_counted_as_499(client: Client) -> None:
    conversation = await new_conversation(client)
    assert client.port is not None
    _, writer = await asyncio.open_connection(client.host, client.port)
    path = f"/api/conversations/{conversation}/messages"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    writer.write(head.encode() + b'{"role"')
    await writer.drain()
    writer.close()
    gone = {"http_request_method": "POST", "http_route": MESSAGES, "http_response_status_code": "499"}
    await _until(client, lambda figures: figures.get(f"{DURATION}_count", **gone) == 1)


async def test_a_stream_is_timed_to_its_head_however_long_it_lives(client: Client) -> None:
    conversation = await new_conversation(client)
    async with _stream(client, conversation) as reader:
        await reader.until("ready")
        opened = {"http_route": EVENTS, "http_response_status_code": "200"}
        before = await _until(client, lambda figures: figures.get(f"{DURATION}_count", **opened) == 1)
    after = await _until(client, lambda figures: not figures.get("swarm_streams_open"))
    for name in (f"{DURATION}_count", f"{DURATION}_sum"):
        assert after.get(name, http_route=EVENTS) == before.get(name, http_route=EVENTS)


# The database.


async def test_every_operation_of_the_database_is_timed_under_its_name(client: Client) -> None:
    name = "db_client_operation_duration_seconds_count"
    before = await read_figures(client)
    conversation = await new_conversation(client)
    await client.get(f"/api/conversations/{conversation}")
    after = await read_figures(client)
    moved = {
        dict(labels)["db_operation_name"]
        for (found, labels), value in after.samples.items()
        if found == name and value > before.samples.get((found, labels), 0)
    }
    assert "conversations.get" in moved
    assert len(moved) > 1, "the append, too"


async def test_an_operation_that_fails_is_counted_with_the_class_of_its_error(client: Client) -> None:
    with contextlib.suppress(ValueError):
        async with client.app[DATABASE].operation("of.a.test"):
            raise ValueError("not shown")
    figures = await read_figures(client)
    failed = {"db_operation_name": "of.a.test", "error_type": "ValueError"}
    assert figures.get("db_client_operation_failures_total", **failed) == 1
    assert figures.get("db_client_operation_duration_seconds_count", db_operation_name="of.a.test") == 1


async def test_the_pool_says_what_of_it_is_in_use(client: Client) -> None:
    database = client.app[DATABASE]
    async with database.driver(), database.driver():
        figures = await _until(client, lambda figures: figures.get("db_client_connections", state="used") == 2)
        assert figures.get("db_client_connections_max") == database.config.pool_size
    await _until(client, lambda figures: not figures.get("db_client_connections", state="used"))
    await _until(client, lambda figures: figures.get("db_client_connections", state="idle") >= 2)


async def test_appends_are_counted_in_the_groups_that_they_were_committed_in(client: Client) -> None:
    conversations = [await new_conversation(client) for _ in range(4)]
    before = await read_figures(client)
    await asyncio.gather(*(post_messages(client, conversations[n % 4], 1) for n in range(40)))
    after = await read_figures(client)
    name = "swarm_commit_group_appends"
    assert after.get(f"{name}_sum") - before.get(f"{name}_sum") == 40
    assert 0 < after.get(f"{name}_count") - before.get(f"{name}_count") <= 40


# Streams.


async def test_streams_are_counted_by_kind_while_they_are_open(client: Client) -> None:
    conversation = await new_conversation(client)
    async with _stream(client, conversation) as first, _stream(client, conversation) as second:
        async with _many(client, conversation) as many:
            for reader in (first, second, many):
                await reader.until("ready")
            figures = await read_figures(client)
            assert figures.get("swarm_streams_open", kind="conversation") == 2
            assert figures.get("swarm_streams_open", kind="several") == 1
        await _until(client, lambda figures: figures.get("swarm_streams_open", kind="several") == 0)
    await _until(client, lambda figures: figures.get("swarm_streams_open") == 0)


async def test_an_event_is_counted_for_each_reader_and_the_lag_once_for_all(client: Client) -> None:
    conversation = await new_conversation(client)
    async with contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(_stream(client, conversation)) for _ in range(3)]
        readers.append(await stack.enter_async_context(_many(client, conversation)))
        for reader in readers:
            await reader.until("ready")
        before = await read_figures(client)
        await post_messages(client, conversation, 5)  # one append, one flush
        for reader in readers:
            for _ in range(5):
                await reader.until("message.created")
        after = await read_figures(client)
    assert after.get("swarm_events_delivered_total", source="live") == 4 * 5
    assert after.get("swarm_events_delivered_total") == 4 * 5
    lag = "swarm_delivery_lag_seconds"
    assert after.get(f"{lag}_count") - before.get(f"{lag}_count") == 1
    assert 0 < after.get(f"{lag}_sum") - before.get(f"{lag}_sum") < 20


@pytest.mark.parametrize("environment", [SMALL_RING], ids=["small ring"])
async def test_how_a_reader_was_brought_up_to_date_is_counted_once(client: Client) -> None:
    conversation = await new_conversation(client)
    await _at_ready(_stream(client, conversation))
    assert await _outcomes(client) == {"live": 1}
    async with _stream(client, conversation) as reader:
        await reader.until("ready")
        await post_messages(client, conversation, 1)
        await reader.until("message.created")
        await _at_ready(_stream(client, conversation, "?after=0"))
    assert await _outcomes(client) == {"live": 2, "ring": 1}

    await post_messages(client, conversation, 600)  # more than a page, and more than the ring holds
    await _at_ready(_stream(client, conversation, "?after=0"))
    assert await _outcomes(client) == {"live": 2, "ring": 1, "events": 1}

    await Retention(client.app[DATABASE]).retain(before=None, keep=0, conversation_id=conversation)
    await _at_ready(_stream(client, conversation, "?after=0"))
    assert await _outcomes(client) == {"live": 2, "ring": 1, "events": 1, "state": 1}

    await _at_ready(_stream(client, conversation, Last_Event_ID="of nobody"))
    assert await _outcomes(client) == {"live": 2, "ring": 1, "events": 1, "state": 1, "reset": 1}
    figures = await read_figures(client)
    assert figures.get("swarm_events_delivered_total", source="ring") == 1
    assert figures.get("swarm_events_delivered_total", source="events") == 601
    assert figures.get("swarm_events_delivered_total", source="state") == 601


async def test_each_place_of_a_stream_of_several_is_counted(client: Client) -> None:
    one, two, three = [await new_conversation(client) for _ in range(3)]
    await post_messages(client, two, 1)
    await _at_ready(_many(client, f"{one},{two}:0,{three}:99"))  # a seq that was never issued
    assert await _outcomes(client) == {"live": 1, "events": 1, "reset": 1}


async def test_a_new_timeline_is_a_reset_of_each_open_stream(client: Client) -> None:
    conversation = await new_conversation(client)
    async with _stream(client, conversation) as reader:
        await reader.until("ready")
        await asyncio.to_thread(new_epoch, client.app[DATABASE].config)
        await reader.until("reset")
    assert await _outcomes(client) == {"live": 1, "reset": 1}


@pytest.mark.parametrize("environment", [{"SWARM_STREAM_COMPARE": "0.05"}], ids=["compared often"])
async def test_what_the_comparison_finds_is_a_gap_repaired(client: Client) -> None:
    repaired = await _with_a_reader(client, lambda conversation: _posted_elsewhere(client, conversation))
    assert repaired.get("swarm_doorbell_gaps_repaired_total", found_by="comparison") == 1
    assert repaired.get("swarm_doorbell_gaps_repaired_total", found_by="early") == 0


@pytest.mark.parametrize("environment", [{"SWARM_STREAM_COMPARE": "60"}], ids=["hardly compared"])
async def test_what_an_event_finds_that_came_too_early_is_a_gap_repaired(client: Client) -> None:
    async def happen(conversation: str) -> None:
        await _posted_elsewhere(client, conversation)
        await post_messages(client, conversation, 1)

    repaired = await _with_a_reader(client, happen)
    assert repaired.get("swarm_doorbell_gaps_repaired_total", found_by="early") == 1
    assert repaired.get("swarm_doorbell_gaps_repaired_total", found_by="comparison") == 0


async def _posted_elsewhere(client: Client, conversation: str) -> None:
    """A message of another process: no commit tells this one of it."""
    hub, channels = client.app[HUB], client.app[HUB].channels.copy()
    hub.channels.clear()
    await post_messages(client, conversation, 1)
    hub.channels.update(channels)


async def _with_a_reader(client: Client, happen: Callable[[str], Awaitable[None]]) -> Figures:
    conversation = await new_conversation(client)
    async with _stream(client, conversation) as reader:
        await reader.until("ready")
        await happen(conversation)
        await reader.until("message.created")
        return await _until(client, lambda figures: figures.get("swarm_doorbell_gaps_repaired_total"))


# The process.


async def test_a_loop_that_stands_still_is_seen(client: Client) -> None:
    lag = "swarm_event_loop_lag_seconds"

    def long_ones(figures: Figures) -> float:
        return figures.get(f"{lag}_count") - figures.get(f"{lag}_bucket", le="0.25")

    await _until(client, lambda figures: figures.get(f"{lag}_count"))
    before = long_ones(await read_figures(client))
    time.sleep(0.8)  # noqa: ASYNC251 (this is what is to be seen)
    await _until(client, lambda figures: long_ones(figures) > before)


async def test_the_memory_of_the_process_is_shown(client: Client) -> None:
    assert (await read_figures(client)).get("process_resident_memory_bytes") > 2**20


async def test_what_has_not_happened_yet_is_there_at_zero(client: Client) -> None:
    text = await (await client.get("/metrics")).text()
    for series in (
        'swarm_stream_resumes_total{outcome="reset"}',
        'swarm_events_delivered_total{source="state"}',
        'swarm_doorbell_gaps_repaired_total{found_by="early"}',
        'swarm_streams_open{kind="several"}',
    ):
        assert f"{series} 0.0\n" in text


async def test_every_metric_is_in_the_documentation(client: Client) -> None:
    registry = client.app[INSTRUMENTS].registry
    documented = await asyncio.to_thread(_documented)
    for family in registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"| `{name}` |" in documented


def _documented() -> str:
    return (ROOT / "docs" / "metrics.md").read_text()


async def test_promtool_finds_nothing_in_what_a_busy_server_shows(client: Client) -> None:
    conversation = await new_conversation(client)
    async with _stream(client, conversation) as reader, _many(client, conversation):
        await post_messages(client, conversation, 3)
        await reader.until("message.created")
        with contextlib.suppress(ValueError):
            async with client.app[DATABASE].operation("of.a.test"):
                raise ValueError
        text = await (await client.get("/metrics")).text()
    await asyncio.to_thread(check, text)
