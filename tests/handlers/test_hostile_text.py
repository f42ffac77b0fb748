"""Text that tries to break out of its field: it comes back as it was, everywhere, and adds nothing to a stream."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse

from handlers.resources import DATABASE
from storage.retention import Retention
from tests.api import Client, fault, new_conversation
from tests.reader import Held
from tests.sse_reader import Frame, SseReader

Json = dict[str, Any]

HOSTILE = [
    "a\rb\nc\r\nd\n\r",
    "\n\nevent: message.deleted\ndata: {}\nid: 1@other\n\n",
    "\r\revent: drain\r\rdata: {}\r\r",
    "data: x",
    "id: 9\n\nretry: 1\n\n: ping\n\n",
    ":",
    # Every line break that some standard or library knows, one of which is no line break in a stream.
    "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei",
    # What a template fills in (decision 2), and all other control characters but NUL.
    "\x01\x02\x01",
    "".join(map(chr, range(1, 32))) + "\x7f" + "".join(map(chr, range(128, 160))),
    "\ufeffdata: a byte order mark comes first",
    '"}}\n\ndata: {"seq":1}',
    '\\" \\n \\u000a \\u0000 \\ud83d \\',
    "0\r\n\r\n",  # the last chunk
    "\u202eright to left\u202c \ufffe\uffff\ufdd0 \U0010ffff \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "%d %s {0} :name $1 '; DROP TABLE messages; -- <!--</script>&amp;",
    "a very long line, " * 10_000,
]
SHORT = [text for text in HOSTILE if len(text) <= 200]
UNSTORABLE = ["a\x00b", "\ud83d", "x\ude00", "\ude00\ud83d"]


def _escaped(document: Any) -> bytes:
    return json.dumps(document).encode()


def _raw(document: Any) -> bytes:
    """As few escapes as JSON allows, and line breaks of every kind between the tokens."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2)
    return text.replace(b"\n", b"\r\n\r\t\n")


ENCODERS = {"escaped": _escaped, "raw": _raw}


@pytest.fixture(params=list(ENCODERS))
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def _send(client: Client, method: str, path: str, document: Any, encoding: str) -> Json:
    answer = await client.request(
        method, path, data=ENCODERS[encoding](document), headers={"Content-Type": "application/json"}
    )
    assert answer.status in {200, 201}, await answer.text()
    body: Json = await answer.json()
    return body


@asynccontextmanager
async def _reading(client: Client, target: str) -> AsyncIterator[SseReader]:
    assert client.port is not None
    async with SseReader(client.host, client.port, target) as reader:
        await reader.until("ready")
        yield reader


def _check(frame: Frame, epoch: str, *, numbered: bool) -> None:
    """The frame of an event has the lines that it should have, in their order, and no others."""
    seq = frame.json["seq"]
    names = [line.partition(": ")[0] for line in frame.lines]
    assert names == (["event", "data", "id"] if numbered else ["event", "data"]), frame
    assert frame.id == (f"{seq}@{epoch}" if numbered else None)


async def _events(reader: SseReader, last: int, epoch: str, *, numbered: bool) -> list[Frame]:
    """The events up to seq `last`, each of the seqs once; between them nothing but what must be there."""
    frames: list[Frame] = []
    while not frames or frames[-1].json["seq"] < last:
        frame = await reader.frame()
        if frame.lines == (": ping",):
            continue
        if frame.event.startswith("feed."):
            assert [line.partition(": ")[0] for line in frame.lines] == ["event", "data"], frame
        elif frame.event in {"cursor", "ready"}:  # `ready` again, where the feed could not tell its reader of something
            assert not numbered
            assert [line.partition(": ")[0] for line in frame.lines] == ["event", "data", "id"], frame
        else:
            assert frame.event, frame
            _check(frame, epoch, numbered=numbered)
            frames.append(frame)
    return frames


def _calls(text: str) -> list[Json]:
    return [
        {
            "id": text[:20],
            "name": text[:20],
            "server": text[:20],
            "arguments": {text[:99]: text[:99]},
            "result": [text[:99], {"": text[:99]}],
            "is_error": False,
            "started_at": None,
            "ended_at": None,
        }
    ]


async def _write(client: Client, conversation_id: str, encoding: str) -> dict[int, Json]:
    """Every field that takes text, by every way that takes it. What is to be in each message, by its position."""
    path = f"/api/conversations/{conversation_id}/messages"
    meant: dict[int, Json] = {}
    for text in HOSTILE:
        metadata = {text[:99]: [text[:99], {"a": {text[:99]: None}}]}
        fields = {"metadata": metadata, "model": text[:20], "usage": {text[:99]: text[:99]}, "tool_calls": _calls(text)}
        # Posted whole, alone and with others.
        told = await _send(client, "POST", path, {"role": "user", "content": text, **fields}, encoding)
        meant[told["position"]] = {"content": text, **fields}
        many = [{"role": "user", "content": text}, {"role": "system", "content": text, "metadata": metadata}]
        for item in (await _send(client, "POST", path, many, encoding))["items"]:
            meant[item["position"]] = {"content": text}
        # Streamed, split at every place that is left between two code points of its beginning.
        opened = await _send(client, "POST", path, {"role": "user", "status": "streaming", "model": "m"}, encoding)
        message, length = f"/api/messages/{opened['id']}", 0
        for piece in [*text[:40], text[40:]]:
            delta = {"offset": length, "text": piece}
            length = (await _send(client, "POST", f"{message}/deltas", delta, encoding))["length"]
        del fields["metadata"]
        finished = await _send(client, "POST", f"{message}/finish", {"status": "complete", **fields}, encoding)
        assert finished["length"] == length
        meant[opened["position"]] = {"content": text, **fields}
        # Edited.
        edit = {"content": text, "metadata": metadata}
        posted = await _send(client, "POST", path, {"role": "user", "content": "at first"}, encoding)
        await _send(client, "PATCH", f"/api/messages/{posted['id']}", edit, encoding)
        meant[posted["position"]] = edit
    # Imported: a line break ends a line there, so that it can only come escaped.
    lines = [{"role": "user", "content": text, "metadata": {text[:99]: text[:99]}} for text in HOSTILE]
    imported = await client.post(
        path,
        data=b"\n".join(msgspec.json.encode(line).replace(b'"metadata":', b'"metadata":\r\t') for line in lines),
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert imported.status == 200, await imported.text()
    first = (await imported.json())["first_position"]
    meant |= {first + n: line for n, line in enumerate(lines)}
    return meant


async def _stored(client: Client, conversation_id: str) -> tuple[int, dict[int, Json]]:
    messages: dict[int, Json] = {}
    window: Json = {"next": 0}
    while window["next"] is not None:
        path = f"/api/conversations/{conversation_id}/messages?after={window['next']}&limit=100"
        window = await (await client.get(path)).json()
        messages |= {item["position"]: item for item in window["items"]}
    return window["as_of"], messages


def _check_meant(messages: dict[int, Json], meant: dict[int, Json]) -> None:
    assert messages.keys() == meant.keys()
    for position, fields in meant.items():
        for name, value in fields.items():
            if name != "role":
                assert messages[position][name] == value, (position, name)


async def test_hostile_text_comes_back_as_it_was_and_adds_nothing_to_a_stream(client: Client, encoding: str) -> None:
    conversation_id = await new_conversation(client, title="t")
    epoch = client.app[DATABASE].epoch
    own, many = f"/api/conversations/{conversation_id}/events", f"/api/events?conversations={conversation_id}&feed=true"
    async with AsyncExitStack() as stack:
        live = [
            (await stack.enter_async_context(_reading(client, own)), True),
            (await stack.enter_async_context(_reading(client, many)), False),
        ]
        meant = await _write(client, conversation_id, encoding)
        head, stored = await _stored(client, conversation_id)
        _check_meant(stored, meant)
        # A post and an edit make an event each, an array and an import one a message; a stream its beginning, its
        # deltas (none of them empty), and its end.
        deltas = sum(min(len(text), 40) + (len(text) > 40) for text in HOSTILE)
        assert head == len(HOSTILE) * (1 + 2 + 2 + 2) + deltas + len(HOSTILE)
        replays = [
            (await stack.enter_async_context(SseReader(client.host, client.port or 0, target)), numbered)
            for target, numbered in [(f"{own}?after=0", True), (many.replace("&", ":0&"), False)]
        ]
        for reader, _ in replays:
            assert (await reader.frame()).lines[0].startswith("retry: ")
        for reader, numbered in live + replays:
            held = Held()
            frames = await _events(reader, head, epoch, numbered=numbered)
            assert [frame.json["seq"] for frame in frames] == list(range(1, head + 1))
            for frame in frames:
                held.apply(frame.event, frame.json)
            assert held.messages == stored


async def test_hostile_text_comes_back_as_it_was_after_its_events_have_gone(client: Client, encoding: str) -> None:
    conversation_id = await new_conversation(client, title="t")
    epoch = client.app[DATABASE].epoch
    meant = await _write(client, conversation_id, encoding)
    title = SHORT[1]
    await _send(client, "PATCH", f"/api/conversations/{conversation_id}", {"title": title}, encoding)
    head, stored = await _stored(client, conversation_id)
    retained = await Retention(client.app[DATABASE]).retain(before=None, keep=0)
    assert retained.events == head
    own = f"/api/conversations/{conversation_id}/events?after=0"
    for target, numbered in [(own, True), (f"/api/events?conversations={conversation_id}:0", False)]:
        assert client.port is not None
        async with SseReader(client.host, client.port, target) as reader:
            held = Held()
            told = [frame for frame in await reader.until("ready") if frame.event not in {"ready", "cursor"}]
            assert [frame.event for frame in told] == ["message.snapshot"] * len(meant) + ["conversation.updated"]
            for frame in told:
                # The last one is at the head, the floor itself: its place is `ready`'s to tell.
                below = frame.json["seq"] < head
                _check(frame, epoch, numbered=numbered and below)
                held.apply(frame.event, frame.json)
        assert held.messages == stored
        _check_meant(held.messages, meant)
        assert held.conversation is not None
        assert held.conversation["title"] == title


async def test_hostile_titles_and_metadata_of_conversations_come_back_and_are_told_to_the_feed(
    client: Client, encoding: str
) -> None:
    renamed = await new_conversation(client)
    epoch = client.app[DATABASE].epoch
    async with (
        _reading(client, f"/api/conversations/{renamed}/events") as own,
        _reading(client, f"/api/events?conversations={renamed}") as many,
        _reading(client, "/api/events") as feed,
    ):
        for text in SHORT:
            fields = {"title": text, "metadata": {text: {text: [text]}}}
            made = await _send(client, "POST", "/api/conversations", fields, encoding)
            edited = await _send(client, "PATCH", f"/api/conversations/{renamed}", fields, encoding)
            for told in (made, edited):
                assert {name: told[name] for name in fields} == fields
                assert (await (await client.get(f"/api/conversations/{told['id']}")).json()) == told
            for reader, numbered in ((own, True), (many, False)):
                [frame] = await _events(reader, edited["as_of"], epoch, numbered=numbered)
                assert (frame.event, frame.json["conversation"]) == ("conversation.updated", edited)
            waiting = {made["id"]: made, edited["id"]: edited}
            while waiting:
                frame = await feed.event()
                assert [line.partition(": ")[0] for line in frame.lines] == ["event", "data"]
                state = frame.json["conversation"]
                if waiting.get(state["id"]) == state:
                    del waiting[state["id"]]


def _messages(*faulty: tuple[str, Any]) -> list[tuple[str, Any, str]]:
    return [("/api/conversations/{conversation}/messages", body, f"pointer {place}") for place, body in faulty]


def _refused(bad: str) -> list[tuple[str, Any, str]]:
    """Path, body, and the place that the answer has to name, for every field that takes text."""
    good = {"role": "user", "content": "x"}
    key = bad.replace("\ud83d", "\ufffd").replace("\ude00", "\ufffd")  # no answer could carry it
    return [
        *_messages(
            ("/content", {**good, "content": bad}),
            ("/model", {**good, "model": bad}),
            ("/metadata/a/1", {**good, "metadata": {"a": [1, bad]}}),
            (f"/metadata/{key}", {**good, "metadata": {bad: 1}}),
            ("/usage/a", {**good, "usage": {"a": bad}}),
            ("/tool_calls/0/arguments/q", {**good, "tool_calls": [{"id": "1", "name": "n", "arguments": {"q": bad}}]}),
            ("/tool_calls/0/result", {**good, "tool_calls": [{"id": "1", "name": "n", "result": bad}]}),
            ("/tool_calls/0/name", {**good, "tool_calls": [{"id": "1", "name": bad}]}),
            ("/1/content", [good, {**good, "content": bad}]),
        ),
        ("/api/conversations", {"title": bad}, "pointer /title"),
        ("/api/conversations", {"metadata": {"a": bad}}, "pointer /metadata/a"),
        ("PATCH /api/conversations/{conversation}", {"title": bad}, "pointer /title"),
        ("PATCH /api/messages/{message}", {"content": bad}, "pointer /content"),
        ("PATCH /api/messages/{message}", {"metadata": {"a": bad}}, "pointer /metadata/a"),
        ("/api/messages/{streaming}/deltas", {"offset": 0, "text": bad}, "pointer /text"),
        ("/api/messages/{streaming}/finish", {"status": "failed", "model": bad}, "pointer /model"),
        ("/api/messages/{streaming}/finish", {"status": "failed", "usage": {"a": bad}}, "pointer /usage/a"),
    ]


@pytest.mark.parametrize("bad", UNSTORABLE, ids=ascii)
async def test_what_no_database_can_hold_is_422_with_its_field_and_leaves_no_trace(client: Client, bad: str) -> None:
    conversation_id = await new_conversation(client)
    path = f"/api/conversations/{conversation_id}/messages"
    posted = [{"role": "user", "content": "x"}, {"role": "user", "status": "streaming"}]
    message, streaming = (await (await client.post(path, json=posted)).json())["items"]
    before = await _stored(client, conversation_id)
    ids = {"conversation": conversation_id, "message": message["id"], "streaming": streaming["id"]}
    for target, body, place in _refused(bad):
        method, _, target_path = target.rpartition(" ")
        answer: ClientResponse = await client.request(
            method or "POST",
            target_path.format(**ids),
            data=json.dumps(body),  # escaped: UTF-8 could not say it
            headers={"Content-Type": "application/json"},
        )
        assert await fault(answer) == place, (target, place)
    imported = await client.post(
        path,
        data='{"role":"user","content":"kept"}\n' + json.dumps({"role": "user", "content": bad}),
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert imported.status == 422
    document = await imported.json()
    assert (document["line"], document["accepted"], document["errors"][0]["pointer"]) == (2, 1, "/content")
    head, stored = await _stored(client, conversation_id)
    assert head == before[0] + 1
    assert {position: stored[position] for position in before[1]} == before[1]
    assert stored[3]["content"] == "kept"
