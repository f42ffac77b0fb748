"""Several conversations on one connection, as its readers see it, byte for byte."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from events.conversation_log import Draft
from events.frame import PIECE_BYTES
from handlers.multiplexed_streams import CONVERSATIONS as MOST
from handlers.resources import CONVERSATIONS, DATABASE, HUB, LOG
from storage.records import EMPTY_OBJECT
from tests.api import Client, fault, new_conversation
from tests.reader import Follower, Held
from tests.sse_reader import Frame, SseReader, StreamEnded

UNKNOWN = "00000000-0000-7000-8000-000000000000"
SMALL_RING = {"SWARM_STREAM_RING": "1024"}


async def _new(client: Client, *texts: str) -> str:
    """The id of a conversation with these messages."""
    conversation_id = await new_conversation(client)
    for text in texts:
        await _post(client, conversation_id, text)
    return conversation_id


async def _post(client: Client, conversation_id: str, text: str) -> str:
    """The message as it came back."""
    path = f"/api/conversations/{conversation_id}/messages"
    answer = await client.post(path, json={"role": "user", "content": text})
    assert answer.status == 201, await answer.text()
    return await answer.text()


async def _foreign(client: Client) -> str:
    """The id of another tenant's conversation, in which there is a message."""
    made = await client.app[CONVERSATIONS].create("other", "theirs", EMPTY_OBJECT, None)
    conversation_id = str(json.loads(made.body)["id"])
    await client.app[LOG].post("other", conversation_id, [Draft("user", "theirs")], many=False, key=None)
    return conversation_id


async def _deleted(client: Client) -> str:
    conversation_id = await _new(client, "gone")
    assert (await client.delete(f"/api/conversations/{conversation_id}")).status == 204
    return conversation_id


@asynccontextmanager
async def _stream(client: Client, *asked: str, query: str = "", **options: Any) -> AsyncIterator[SseReader]:
    assert client.port is not None
    target = f"/api/events?conversations={','.join(asked)}{query}"
    async with SseReader(client.host, client.port, target, **options) as reader:
        yield reader


async def _pieces(reader: SseReader, until: bytes) -> list[str]:
    """What the server wrote, piece by piece, up to the piece in which that is."""
    pieces = [await reader.read_chunk()]
    while until not in pieces[-1]:
        pieces.append(await reader.read_chunk())
    return [piece.decode() for piece in pieces]


def _epoch(client: Client) -> str:
    return client.app[DATABASE].epoch


def _told(frames: list[Frame]) -> list[tuple[str, int]]:
    """Of which conversation, and which of its events, the frames are."""
    return [(frame.json["conversation_id"], frame.json["seq"]) for frame in frames if "seq" in frame.json]


async def test_what_is_written_is_what_the_design_says_byte_for_byte(client: Client) -> None:
    epoch = _epoch(client)
    a, b = await _new(client), await _new(client)
    before = await _post(client, b, "one")
    async with _stream(client, f"{a}:0", f"{b}:0", headers={"Accept-Encoding": "gzip, br"}) as reader:
        assert reader.status == 200
        assert reader.answered["content-type"] == "text/event-stream"
        assert reader.answered["cache-control"] == "no-cache, no-transform"
        assert reader.answered["x-accel-buffering"] == "no"
        assert "content-encoding" not in reader.answered
        retry, first = await _pieces(reader, b"event: cursor")
        assert retry.startswith("retry: ")
        assert first == (
            f'event: message.created\ndata: {{"conversation_id":"{b}","seq":1,"message":{before}}}\n\n'
            f'event: ready\ndata: {{"as_of":{{"{a}":0,"{b}":1}}}}\nid: 0.1@{epoch}\n\n'
            f"event: cursor\ndata: {{}}\nid: 0.1@{epoch}\n\n"
        )
        after = await _post(client, a, "data: x\n\nid: 9\r\u2028")
        [live] = await _pieces(reader, b"event: cursor")
        assert live == (
            f'event: message.created\ndata: {{"conversation_id":"{a}","seq":1,"message":{after}}}\n\n'
            f"event: cursor\ndata: {{}}\nid: 1.1@{epoch}\n\n"
        )


async def test_only_cursor_and_ready_carry_an_id_and_each_write_ends_with_it(client: Client) -> None:
    ids = [await _new(client) for _ in range(5)]
    async with _stream(client, *(f"{name}:0" for name in ids)) as reader:
        await reader.read_chunk()  # retry
        body = [{"role": "user", "content": "x" * 300}] * 20
        paths = [f"/api/conversations/{name}/messages" for name in ids]
        await asyncio.gather(*(client.post(path, json=body) for path in paths for _ in range(3)))
        seen = dict.fromkeys(ids, 0)
        while any(seq < 60 for seq in seen.values()):
            piece = (await reader.read_chunk()).decode()
            *frames, end = piece.split("\n\n")
            assert end == ""
            assert frames[-1].startswith("event: cursor\n")
            bare = 0  # bytes that were written since the last cursor
            for frame in frames:
                event = frame.partition("\n")[0]
                assert ("\nid: " in frame) == (event in {"event: ready", "event: cursor"})
                bare += len(frame)
                if event == "event: message.created":
                    data = json.loads(frame.split("\n")[1].removeprefix("data: "))
                    assert data["seq"] == seen[data["conversation_id"]] + 1
                    seen[data["conversation_id"]] = data["seq"]
                elif event == "event: cursor":
                    vector = ".".join(str(seen[name]) for name in ids)
                    assert frame == f"event: cursor\ndata: {{}}\nid: {vector}@{_epoch(client)}"
                    assert bare < 2 * PIECE_BYTES, "who is cut after a few kilobytes each time gets on, too"
                    bare = 0


@pytest.mark.parametrize("environment", [SMALL_RING, {}], ids=["from the log", "from the ring"])
async def test_a_reader_resumes_each_conversation_after_its_own_seq(client: Client) -> None:
    a, b, c = await _new(client, *"abcd"), await _new(client, *"ef"), await _new(client, *"gh")
    epoch = _epoch(client)
    async with _stream(client, f"{c}:1", a, f"{b}:0@{epoch}") as reader:
        frames = await reader.until("ready")
        assert sorted(_told(frames)) == sorted([(c, 2), (b, 1), (b, 2)])
        assert frames[-1].json == {"as_of": {c: 2, a: 4, b: 2}}
        assert frames[-1].id == f"2.4.2@{epoch}"


async def test_the_header_wins_over_the_places_of_the_query(client: Client) -> None:
    a, b = await _new(client, *"abc"), await _new(client, *"de")
    async with _stream(client, f"{a}:0", f"{b}:0", headers={"Last-Event-ID": f"2.2@{_epoch(client)}"}) as reader:
        assert _told(await reader.until("ready")) == [(a, 3)]


@pytest.mark.parametrize("vector", ["nonsense", "1@{epoch}", "1.1.1@{epoch}", "1,1@{epoch}", "1.1@", "01.1@{epoch}"])
async def test_a_vector_that_was_not_issued_for_this_request_resets_all_of_them(client: Client, vector: str) -> None:
    a, b = await _new(client, "a"), await _new(client, "b", "c")
    headers = {"Last-Event-ID": vector.replace("{epoch}", _epoch(client))}
    async with _stream(client, f"{a}:0", b, headers=headers) as reader:
        reset, ready = await reader.until("ready")
        assert (reset.event, reset.id) == ("reset", None)
        assert reset.json == {"reason": "malformed", "as_of": {a: 1, b: 2}}
        assert ready.json == {"as_of": {a: 1, b: 2}}
        await _post(client, b, "d")
        assert _told(await reader.until("message.created")) == [(b, 3)]


async def test_a_vector_of_another_timeline_resets_all_of_them(client: Client) -> None:
    a, b = await _new(client, "a"), await _new(client, "b", "c")
    async with _stream(client, a, b, headers={"Last-Event-ID": "1.1@other"}) as reader:
        reset, ready = await reader.until("ready")
        assert reset.json == {"reason": "epoch", "as_of": {a: 1, b: 2}}
        assert ready.id == f"1.2@{_epoch(client)}"


@pytest.mark.parametrize("way", ["header", "seq", "id"])
async def test_only_the_conversation_that_is_ahead_of_its_log_is_reset(client: Client, way: str) -> None:
    a, b = await _new(client, "a"), await _new(client, "b", "c")
    epoch = _epoch(client)
    asked = {"header": [a, b], "seq": [f"{a}:7", f"{b}:1"], "id": [f"{a}:7@{epoch}", f"{b}:1"]}[way]
    headers = {"Last-Event-ID": f"7.1@{epoch}"} if way == "header" else {}
    async with _stream(client, *asked, headers=headers) as reader:
        reset, *events, ready = await reader.until("ready")
        assert reset.json == {"reason": "ahead", "as_of": {a: 1}}
        assert _told(events) == [(b, 2)]
        assert ready.id == f"1.2@{epoch}"


async def test_a_place_of_another_timeline_resets_that_conversation(client: Client) -> None:
    a, b = await _new(client, "a"), await _new(client, "b", "c")
    async with _stream(client, f"{a}:0@other", f"{b}:1") as reader:
        reset, *events, _ = await reader.until("ready")
        assert reset.json == {"reason": "epoch", "as_of": {a: 1}}
        assert _told(events) == [(b, 2)]


async def test_unknown_foreign_and_deleted_conversations_are_gone_alike_and_the_others_go_on(client: Client) -> None:
    here = await _new(client, "a")
    gone = [UNKNOWN, await _foreign(client), await _deleted(client), "no-uuid-at-all"]
    epoch = _epoch(client)
    async with _stream(client, f"{gone[0]}:3", gone[1], f"{here}:0", *gone[2:]) as reader:
        first = "".join(await _pieces(reader, b"event: ready"))
        for name in gone:
            assert f'event: conversation.gone\ndata: {{"conversation_id":"{name}"}}\n\n' in first
        assert first.count("event: conversation.gone") == len(gone)
        assert f'event: ready\ndata: {{"as_of":{{"{here}":1}}}}\nid: 3.0.1.0.0@{epoch}\n\n' in first
        await _post(client, here, "b")
        [live] = await _pieces(reader, b"event: cursor")
        assert live.endswith(f"event: cursor\ndata: {{}}\nid: 3.0.2.0.0@{epoch}\n\n")
    # Coming back is no different.
    vector = {"Last-Event-ID": f"3.0.1.0.0@{epoch}"}
    async with _stream(client, gone[0], gone[1], here, *gone[2:], headers=vector) as reader:
        frames = await reader.until("ready")
        assert {frame.json["conversation_id"] for frame in frames if frame.event == "conversation.gone"} == set(gone)
        assert _told(frames) == [(here, 2)]
    assert ("default", UNKNOWN) not in client.app[HUB].channels


async def test_with_all_of_them_gone_the_stream_stays(client: Client) -> None:
    async with _stream(client, UNKNOWN, f"{await _deleted(client)}:1") as reader:
        frames = await reader.until("cursor")
        assert [frame.event for frame in frames] == ["conversation.gone", "conversation.gone", "ready", "cursor"]
        assert frames[2].json == {"as_of": {}}
        assert frames[-1].id == f"0.1@{_epoch(client)}"
        client.app[HUB].drain("shutdown")
        assert (await reader.event()).event == "drain"


async def test_a_conversation_deleted_while_it_is_followed_says_so_and_the_others_go_on(client: Client) -> None:
    a, b = await _new(client, "a"), await _new(client, "b")
    epoch = _epoch(client)
    async with _stream(client, f"{a}:0", f"{b}:0") as reader:
        await reader.until("ready")
        await reader.until("cursor")
        assert (await client.delete(f"/api/conversations/{a}")).status == 204
        frames = await reader.until("cursor")
        assert [frame.event for frame in frames] == ["conversation.deleted", "cursor"]
        await _post(client, b, "c")
        frames = await reader.until("cursor")
        assert _told(frames) == [(b, 2)]
        assert frames[-1].id == f"2.2@{epoch}"
    async with _stream(client, a, b, headers={"Last-Event-ID": frames[-1].id or ""}) as reader:
        assert [frame.event for frame in await reader.until("ready")] == ["conversation.gone", "ready"]


@pytest.mark.parametrize("count", [MOST, MOST + 1])
async def test_at_most_64_conversations_are_followed(client: Client, count: int) -> None:
    # Each has a place, which nothing limits to be short.
    asked = [f"00000000-0000-7000-8000-{n:012}:{9_007_199_254_740_991}@{'k' * 32}" for n in range(count)]
    if count <= MOST:
        async with _stream(client, *asked) as reader:
            frames = await reader.until("ready")
            assert len(frames) == MOST + 1
    else:
        assert (
            await fault(await client.get(f"/api/events?conversations={','.join(asked)}")) == "parameter conversations"
        )


@pytest.mark.parametrize(
    "asked",
    [
        "",
        ",",
        f"{UNKNOWN},",
        f",{UNKNOWN}",
        f"{UNKNOWN},{UNKNOWN}",
        f"{UNKNOWN},{UNKNOWN.replace('0', 'a')}:1,{UNKNOWN.replace('0', 'A')}",
        f"{UNKNOWN}:",
        f"{UNKNOWN}:x",
        f"{UNKNOWN}:-1",
        f"{UNKNOWN}:1:2",
        f"{UNKNOWN}:1@",
        f"{UNKNOWN} ",
        f"{UNKNOWN}:{'9' * 17}",
        "a" * 65,
        "é",
        "a\nid: 7",
        "a" * 8_001,
    ],
)
async def test_what_is_no_list_of_conversations_is_refused_by_name(client: Client, asked: str) -> None:
    answer = await client.get("/api/events", params={"conversations": asked})
    assert await fault(answer) == "parameter conversations"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("feed=yes", "feed"),
        ("feed=1", "feed"),
        ("feed=", "feed"),
        ("feed=true&feed=true", "feed"),
        ("after=1", "after"),
    ],
)
async def test_other_parameters_are_refused_by_name(client: Client, query: str, parameter: str) -> None:
    assert await fault(await client.get(f"/api/events?{query}")) == f"parameter {parameter}"


async def test_an_id_in_upper_case_is_the_conversation_too(client: Client) -> None:
    a = await _new(client, "a")
    async with _stream(client, f"{a.upper()}:0") as reader:
        assert _told(await reader.until("ready")) == [(a, 1)]


async def test_an_http_1_0_reader_gets_plain_bytes(client: Client) -> None:
    a, b = await _new(client, "a"), await _new(client)
    async with _stream(client, f"{a}:0", b, version="1.0") as reader:
        assert "transfer-encoding" not in reader.answered
        assert _told(await reader.until("ready")) == [(a, 1)]
        await reader.until("cursor")
        await _post(client, b, "b")
        frames = await reader.until("cursor")
        assert _told(frames) == [(b, 1)]
        assert frames[-1].id == f"1.1@{_epoch(client)}"


async def test_a_shutdown_ends_it_with_a_drain_and_a_wait(client: Client) -> None:
    a = await _new(client)
    async with _stream(client, a) as reader:
        await reader.until("cursor")
        client.app[HUB].drain("shutdown")
        frame = await reader.event()
        assert (frame.event, frame.json, frame.id) == ("drain", {"reason": "shutdown"}, None)
        assert (await reader.frame()).retry is not None
        with pytest.raises(StreamEnded) as ended:
            await reader.frame()
        assert ended.value.clean
    async with _stream(client, a) as reader:  # one that comes too late
        assert reader.status == 200
        assert (await reader.event()).json == {"reason": "shutdown"}


async def test_without_a_database_it_is_told_to_come_back(client: Client) -> None:
    a = await _new(client)
    client.app[DATABASE]._ready.clear()
    async with _stream(client, a) as reader:
        assert reader.status == 200
        assert (await reader.event()).json == {"reason": "unavailable"}
        assert (await reader.frame()).retry is not None


async def test_opening_64_conversations_is_one_query(client: Client) -> None:
    ids = [await new_conversation(client) for _ in range(MOST)]
    observed: list[str] = []

    class Observer:
        def observe(self, operation: str, seconds: float, error: str | None) -> None:
            observed.append(operation)

    client.app[DATABASE].observer = Observer()
    async with _stream(client, *(f"{name}:0" for name in ids)) as reader:
        frames = await reader.until("ready")
        assert frames[-1].json == {"as_of": dict.fromkeys(ids, 0)}
        # What goes on by itself is not asked for by anybody.
        assert [operation for operation in observed if operation != "log.moved"] == ["log.heads"]


async def test_a_reader_that_goes_away_is_forgotten(client: Client) -> None:
    ids = [await _new(client) for _ in range(3)]
    hub = client.app[HUB]
    async with _stream(client, *ids, query="&feed=true") as reader:
        await reader.until("ready")
        assert hub.streams == 1
    async with asyncio.timeout(10):
        while hub.streams:
            await asyncio.sleep(0.01)
    assert all(hub.channels["default", name].empty for name in ids)
    assert not hub.feeds._feeds
    await _post(client, ids[0], "nobody listens")


@pytest.mark.parametrize("environment", [SMALL_RING], ids=["small ring"])
async def test_a_reader_of_several_that_stalls_gets_all_of_it_later_and_delays_nobody(client: Client) -> None:
    """The stalled one falls off the rings of all of them and its socket fills up; the other reads along."""
    ids = [await _new(client) for _ in range(3)]
    asked = ",".join(f"{name}:0" for name in ids)
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    stalled.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(stalled, (client.host, client.port))
    await loop.sock_sendall(
        stalled, f"GET /api/events?conversations={asked} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    )
    body = [{"role": "user", "content": "x" * 2_000}] * 500
    rounds, each = 3, 500
    assert client.port is not None
    good = Follower(client.host, client.port, f"/api/events?conversations={asked}", {n: Held() for n in ids}, many=True)

    async def write() -> None:
        for _ in range(rounds):  # 9 MB: more than the kernel holds for the stalled one
            await asyncio.gather(*(client.post(f"/api/conversations/{name}/messages", json=body) for name in ids))

    async with asyncio.timeout(60):
        await asyncio.gather(
            write(), good.follow(lambda: all(held.last_seq == rounds * each for held in good.held.values()))
        )
    assert good.connections == 1
    hub = client.app[HUB]
    async with asyncio.timeout(10):
        while hub.streams > 1:  # until the good one has left
            await asyncio.sleep(0.01)
    [held] = {subscriber.stream for channel in hub.channels.values() for subscriber in channel.behind}
    assert held.paused
    assert held.transport is not None
    assert held.transport.get_write_buffer_size() < 300_000
    seen = bytearray()
    last = f"id: {'.'.join(['1500'] * 3)}@{_epoch(client)}\n".encode()
    async with asyncio.timeout(60):
        while last not in seen[-100_000:]:
            data = await loop.sock_recv(stalled, 1_000_000)
            assert data
            seen += data
    stalled.close()
    frames = seen.decode().split("\n\n")
    datas = [frame.split("\n")[1] for frame in frames if frame.startswith("event: message.created")]
    for name in ids:
        seqs = [json.loads(data.removeprefix("data: "))["seq"] for data in datas if name in data]
        assert seqs == list(range(1, rounds * each + 1))
