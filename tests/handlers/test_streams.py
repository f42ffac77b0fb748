"""The stream of one conversation, as its readers see it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from handlers.resources import DATABASE, HUB
from server import settings
from server.app import create_app
from tests.served import Served
from tests.sse_reader import Frame, SseReader, StreamEnded

Client = TestClient[Any, web.Application]

SMALL_RING = {"SWARM_STREAM_RING": "1024"}


async def _new(client: Client, *texts: str) -> str:
    """A conversation with these messages; its path."""
    made = await client.post("/api/conversations", json={"title": "t"})
    path = f"/api/conversations/{(await made.json())['id']}"
    for text in texts:
        await _post(client, path, text)
    return path


async def _post(client: Client, path: str, text: str) -> dict[str, Any]:
    answer = await client.post(f"{path}/messages", json={"role": "user", "content": text})
    assert answer.status == 201, await answer.text()
    message: dict[str, Any] = await answer.json()
    return message


@asynccontextmanager
async def _stream(client: Client, path: str, query: str = "", **options: Any) -> AsyncIterator[SseReader]:
    assert client.port is not None
    async with SseReader(client.host, client.port, f"{path}/events{query}", **options) as reader:
        yield reader


def _texts(frames: list[Frame]) -> list[str]:
    return [frame.json["message"]["content"] for frame in frames if "message" in frame.json]


async def test_a_stream_begins_with_a_retry_and_is_ready_at_once(client: Client) -> None:
    path = await _new(client, "one")
    epoch = client.app[DATABASE].epoch
    async with _stream(client, path, headers={"Accept-Encoding": "gzip, deflate, br"}) as reader:
        assert reader.status == 200
        assert reader.answered["content-type"] == "text/event-stream"
        assert reader.answered["cache-control"] == "no-cache, no-transform"
        assert reader.answered["x-accel-buffering"] == "no"
        assert "content-encoding" not in reader.answered
        assert "x-request-id" in reader.answered
        first = await reader.frame()
        assert first.retry is not None
        assert first.id is None
        assert (await reader.frame()).lines == ("event: ready", 'data: {"as_of":1}', f"id: 1@{epoch}")


async def test_a_live_event_is_what_the_design_says_byte_for_byte(client: Client) -> None:
    path = await _new(client)
    async with _stream(client, path) as reader:
        await reader.until("ready")
        answer = await client.post(f"{path}/messages", json={"role": "user", "content": "data: x\n\nid: 9\r\u2028"})
        message = await answer.text()
        frame = await reader.event()
        conversation_id = path.rpartition("/")[2]
        assert frame.lines == (
            "event: message.created",
            f'data: {{"conversation_id":"{conversation_id}","seq":1,"message":{message}}}',
            f"id: 1@{client.app[DATABASE].epoch}",
        )


@pytest.mark.parametrize("way", ["seq", "id", "header", "header wins"])
async def test_a_reader_resumes_exactly_after_what_it_has(client: Client, way: str) -> None:
    path = await _new(client, *"abcdef")
    event_id = f"2@{client.app[DATABASE].epoch}"
    query = {"seq": "?after=2", "id": f"?after={event_id}", "header": "", "header wins": "?after=0"}[way]
    headers = {"Last-Event-ID": event_id} if "header" in way else {}
    async with _stream(client, path, query, headers=headers) as reader:
        frames = await reader.until("ready")
        assert _texts(frames) == ["c", "d", "e", "f"]
        assert frames[-1].json == {"as_of": 6}
        await _post(client, path, "g")
        assert _texts([await reader.event()]) == ["g"]


async def test_zero_is_from_the_start_and_nothing_is_from_now(client: Client) -> None:
    path = await _new(client, "a", "b")
    async with _stream(client, path, "?after=0") as all_of_it, _stream(client, path) as from_now:
        assert _texts(await all_of_it.until("ready")) == ["a", "b"]
        assert _texts(await from_now.until("ready")) == []


@pytest.mark.parametrize("environment", [SMALL_RING, {}], ids=["from the log", "from the ring"])
async def test_resuming_from_each_id_gives_what_came_after_it(client: Client) -> None:
    count = 40
    path = await _new(client, *(f"{n}" for n in range(count)))
    for after in range(count + 1):
        async with _stream(client, path, f"?after={after}") as reader:
            frames = await reader.until("ready")
            assert [frame.json["seq"] for frame in frames[:-1]] == list(range(after + 1, count + 1))
            assert frames[-1].json == {"as_of": count}


async def test_a_replay_of_many_pages_is_whole(client: Client) -> None:
    path = await _new(client)
    batch = [{"role": "user", "content": "x" * 500}] * 500
    for _ in range(4):
        assert (await client.post(f"{path}/messages", json=batch)).status == 201
    async with _stream(client, path, "?after=3") as reader:
        frames = await reader.until("ready")
        assert [frame.json["seq"] for frame in frames[:-1]] == list(range(4, 2_001))


@pytest.mark.parametrize(
    ("header", "reason"),
    [("nonsense", "malformed"), ("1@", "malformed"), ("1@other", "epoch"), ("99@{epoch}", "ahead")],
)
async def test_an_id_of_no_timeline_of_ours_gets_a_reset_and_goes_on_from_there(
    client: Client, header: str, reason: str
) -> None:
    path = await _new(client, "a", "b")
    header = header.replace("{epoch}", client.app[DATABASE].epoch)
    async with _stream(client, path, headers={"Last-Event-ID": header}) as reader:
        reset, ready = await reader.until("ready")
        assert reset.event == "reset"
        assert reset.json == {"reason": reason, "as_of": 2}
        assert reset.id is None
        assert ready.json == {"as_of": 2}
        await _post(client, path, "c")
        assert (await reader.event()).json["seq"] == 3


@pytest.mark.parametrize("query", ["?after=x", "?after=-1", "?after=1@", "?after=" + "9" * 5_000, "?after=1&after=2"])
async def test_a_malformed_after_is_refused_by_name(client: Client, query: str) -> None:
    path = await _new(client)
    answer = await client.get(f"{path}/events{query}")
    assert answer.status == 422
    assert (await answer.json())["errors"][0]["parameter"] == "after"


async def test_no_conversation_no_stream(client: Client) -> None:
    answer = await client.get("/api/conversations/01a20866-be7a-7520-b2b2-05177c225313/events")
    assert answer.status == 404
    assert answer.content_type == "application/problem+json"
    assert not client.app[HUB].channels


async def test_edits_deletions_and_renaming_are_events(client: Client) -> None:
    path = await _new(client)
    async with _stream(client, path) as reader:
        await reader.until("ready")
        message = await _post(client, path, "a secret")
        await client.patch(f"/api/messages/{message['id']}", json={"content": "still a secret"})
        # Read before the deletion: a reader that is behind it finds the tombstones.
        frames = [await reader.event() for _ in range(2)]
        await client.delete(f"/api/messages/{message['id']}")
        renamed = await client.patch(path, json={"title": "new"})
        frames += [await reader.event() for _ in range(2)]
    kinds = ["message.created", "message.updated", "message.deleted", "conversation.updated"]
    assert [frame.event for frame in frames] == kinds
    assert frames[1].json["message"]["content"] == "still a secret"
    assert frames[2].json["message"]["status"] == "deleted"
    assert frames[3].json["conversation"] == await renamed.json()
    assert frames[3].json["conversation"]["as_of"] == frames[3].json["seq"] == 4
    # Whoever replays later sees the same seqs, and the text nowhere.
    async with _stream(client, path, "?after=0") as reader:
        again = await reader.until("ready")
    assert [frame.event for frame in again[:-1]] == ["message.deleted"] * 3 + ["conversation.updated"]
    assert [frame.json["seq"] for frame in again[:-1]] == [1, 2, 3, 4]
    assert not any("secret" in frame.data for frame in again)


async def test_a_deleted_conversation_ends_its_streams_and_is_not_found_again(client: Client) -> None:
    path = await _new(client, "a")
    async with _stream(client, path, "?after=0") as reader:
        await reader.until("ready")
        assert (await client.delete(path)).status == 204
        last = await reader.event()
        assert last.event == "conversation.deleted"
        assert last.json["seq"] == 2
        with pytest.raises(StreamEnded) as ended:
            await reader.event()
        assert ended.value.clean
    assert (await client.get(f"{path}/events", headers={"Last-Event-ID": last.id or ""})).status == 404


async def test_an_http_1_0_reader_gets_plain_bytes(client: Client) -> None:
    path = await _new(client, "a")
    async with _stream(client, path, "?after=0", version="1.0") as reader:
        assert "transfer-encoding" not in reader.answered
        assert _texts(await reader.until("ready")) == ["a"]
        await _post(client, path, "b")
        assert _texts([await reader.event()]) == ["b"]


async def test_every_piece_ends_with_a_whole_frame(client: Client) -> None:
    path = await _new(client)
    async with _stream(client, path) as reader:
        body = [{"role": "user", "content": "x" * 300}] * 200
        await asyncio.gather(*(client.post(f"{path}/messages", json=body) for _ in range(5)))
        seen = 0
        while seen < 1_000:
            piece = await reader.read_chunk()
            assert piece.endswith(b"\n\n")
            seen += piece.count(b"\nid: ") - piece.count(b"event: ready")


@pytest.mark.parametrize("environment", [{"SWARM_STREAM_PING": "1"}], ids=["each second"])
async def test_a_quiet_stream_is_pinged(client: Client) -> None:
    path = await _new(client)
    async with _stream(client, path) as reader:
        await reader.until("ready")
        ping = await reader.frame()
        assert ping.lines == (": ping",)
        assert ping.id is None


async def test_a_reader_that_goes_away_is_forgotten(client: Client) -> None:
    path = await _new(client)
    hub = client.app[HUB]
    async with _stream(client, path) as reader:
        await reader.until("ready")
        assert hub.streams == 1
    async with asyncio.timeout(10):
        while hub.streams:
            await asyncio.sleep(0.01)
    channel = hub.channels["default", path.rpartition("/")[2]]
    assert channel.empty
    await _post(client, path, "nobody listens")


async def test_a_shutdown_ends_streams_with_a_drain_and_a_wait(client: Client) -> None:
    path = await _new(client)
    async with _stream(client, path) as reader:
        await reader.until("ready")
        client.app[HUB].drain("shutdown")
        frame = await reader.event()
        assert (frame.event, frame.json, frame.id) == ("drain", {"reason": "shutdown"}, None)
        assert (await reader.frame()).retry is not None
        with pytest.raises(StreamEnded) as ended:
            await reader.frame()
        assert ended.value.clean
    async with _stream(client, path) as reader:  # one that comes too late
        assert reader.status == 200
        assert (await reader.event()).event == "drain"


async def test_without_a_database_a_stream_is_told_to_come_back(client: Client) -> None:
    path = await _new(client)
    client.app[DATABASE]._ready.clear()
    async with _stream(client, path) as reader:
        assert (reader.status, reader.answered["content-type"]) == (200, "text/event-stream")
        assert (await reader.event()).json == {"reason": "unavailable"}
        assert (await reader.frame()).retry is not None
        with pytest.raises(StreamEnded):
            await reader.frame()


@pytest.mark.parametrize("environment", [SMALL_RING], ids=["small ring"])
async def test_a_reader_that_stalls_gets_all_of_it_later_and_delays_nobody(client: Client) -> None:
    """The stalled one falls off the ring and its socket fills up; the other reads along."""
    path = await _new(client)
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    stalled.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(stalled, (client.host, client.port))
    await loop.sock_sendall(stalled, f"GET {path}/events?after=0 HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    hub = client.app[HUB]
    async with _stream(client, path) as good:
        await good.until("ready")
        body = [{"role": "user", "content": "x" * 2_000}] * 500
        for n in range(8):  # 8 MB: more than the kernel holds for the stalled one
            await client.post(f"{path}/messages", json=body)
            for seq in range(n * 500 + 1, n * 500 + 501):
                assert (await good.event()).json["seq"] == seq
        channel = hub.channels["default", path.rpartition("/")[2]]
        [held] = [s.stream for s in channel.behind if not s.gone]
        assert held.paused
        assert held.transport is not None
        assert held.transport.get_write_buffer_size() < 300_000
        seen = bytearray()
        async with asyncio.timeout(30):
            while b'"seq":4000,' not in seen[-4_000:]:
                seen += await loop.sock_recv(stalled, 1_000_000)
        assert seen.count(b"event: message.created") == 4_000
    stalled.close()


async def test_what_another_process_writes_arrives_too(client: Client, database_url: str) -> None:
    """Two servers on one database, nothing between them but the database."""
    path = await _new(client, "a")
    other_app = create_app(settings.load({"DATABASE_URL": database_url}))
    async with TestClient(Served(other_app)) as other:
        await other_app[DATABASE].wait_until_ready()
        async with _stream(client, path, "?after=0") as reader:
            await reader.until("ready")
            for n in range(5):
                await _post(other, path, f"there {n}")
                await _post(client, path, f"here {n}")
            seen = [await reader.event() for _ in range(10)]
        assert [frame.json["seq"] for frame in seen] == list(range(2, 12))
        assert _texts(seen) == [f"{where} {n}" for n in range(5) for where in ("there", "here")]
