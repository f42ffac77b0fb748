"""Messages that are streamed into, as their writers see it; and what readers are told."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse

from handlers.requests import CONTENT_UNITS
from storage.messages import Messages
from tests.api import Client, fault, new_conversation, problem
from tests.sse_reader import Frame, SseReader

# A problem has a `status` of its own (RFC 9457, 3.1.2).
LENGTH_AND_STATUS = frozenset({"length", "message_status"})
STATUS = frozenset({"message_status"})
UNKNOWN = "00000000-0000-7000-8000-000000000000"

# What one code unit, one code point and one character make of a text is another number each.
TEXTS = [
    "plain",
    "😀👩‍👩‍👧‍👦🇺🇳",
    "e\u0301a\u0308\u200d\ufe0f",
    "שלום עולם \u202e مرحبا",
    "a\ud7ff\ue000\uffff\U00010000\U0010ffffz",
    "\r\n\n\r\u2028\u2029\u0085 data: x\n\nid: 9\n\n: ping\n\n\x01\x02\x1f\x7f\ufeff\\u0000",
]


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


async def _opened(client: Client, conversation_id: str, **fields: Any) -> dict[str, Any]:
    """A message that streams."""
    posted = await client.post(
        f"/api/conversations/{conversation_id}/messages", json={"role": "user", "status": "streaming", **fields}
    )
    assert posted.status == 201, await posted.text()
    message: dict[str, Any] = await posted.json()
    return message


@pytest.fixture
async def message(client: Client) -> dict[str, Any]:
    return await _opened(client, await new_conversation(client))


async def _delta(client: Client, message_id: str, offset: int, text: str, **headers: str) -> ClientResponse:
    body = {"offset": offset, "text": text}
    return await client.post(f"/api/messages/{message_id}/deltas", json=body, headers=headers)


async def _appended(client: Client, message_id: str, offset: int, text: str) -> int:
    """The length after a delta that is taken."""
    answer = await _delta(client, message_id, offset, text)
    assert answer.status == 200, await answer.text()
    body = await answer.json()
    assert set(body) == {"length"}
    return int(body["length"])


async def _finish(client: Client, message_id: str, status: str = "complete", **fields: Any) -> ClientResponse:
    return await client.post(f"/api/messages/{message_id}/finish", json={"status": status, **fields})


async def _read(client: Client, message_id: str) -> dict[str, Any]:
    found: dict[str, Any] = await (await client.get(f"/api/messages/{message_id}")).json()
    return found


@asynccontextmanager
async def _stream(client: Client, conversation_id: str, query: str = "?after=0") -> AsyncIterator[SseReader]:
    assert client.port is not None
    async with SseReader(client.host, client.port, f"/api/conversations/{conversation_id}/events{query}") as reader:
        yield reader


async def _logged(client: Client, conversation_id: str) -> list[Frame]:
    """Every event of the log, as a reader gets them that begins at the start."""
    async with _stream(client, conversation_id) as reader:
        return (await reader.until("ready"))[:-1]


def _assembled(frames: list[Frame], message_id: str) -> str:
    """What a reader holds of a message that it saw stream: it appends each delta where that belongs."""
    text = ""
    for frame in frames:
        if frame.event == "message.delta" and frame.json["message_id"] == message_id:
            assert frame.json["offset"] == _units(text)
            text += frame.json["text"]
    return text


# Opening.


@pytest.mark.parametrize("content", [{}, {"content": ""}])
async def test_a_streaming_message_is_opened_without_content(client: Client, content: dict[str, str]) -> None:
    conversation_id = await new_conversation(client)
    message = await _opened(client, conversation_id, metadata={"a": 1}, model="m", **content)
    assert (message["status"], message["content"], message["position"]) == ("streaming", "", 1)
    assert (message["length"], message["sha256"], message["model"]) == (None, None, "m")
    assert await _read(client, message["id"]) == message
    [created] = await _logged(client, conversation_id)
    assert (created.event, created.json["message"]) == ("message.created", message)


async def test_content_must_not_come_with_a_streaming_message_and_must_with_another(client: Client) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    streaming = {"role": "user", "status": "streaming"}
    assert await fault(await client.post(path, json={**streaming, "content": "x"})) == "pointer /content"
    assert await fault(await client.post(path, json={"role": "user"})) == "pointer /content"
    assert await fault(await client.post(path, json={"role": "user", "status": "failed"})) == "pointer /status"
    assert await fault(await client.post(path, json=[streaming, {**streaming, "content": "x"}])) == "pointer /1/content"


async def test_an_array_may_hold_streaming_messages(client: Client) -> None:
    conversation_id = await new_conversation(client)
    streaming, whole = {"role": "user", "status": "streaming"}, {"role": "user", "content": "whole"}
    posted = await client.post(f"/api/conversations/{conversation_id}/messages", json=[streaming, whole, streaming])
    first, second, third = (await posted.json())["items"]
    assert [item["status"] for item in (first, second, third)] == ["streaming", "complete", "streaming"]
    for item, text in ((third, "third"), (first, "first")):
        assert await _appended(client, item["id"], 0, text) == 5
    window = await (await client.get(f"/api/conversations/{conversation_id}/messages")).json()
    assert [item["content"] for item in window["items"]] == ["first", "whole", "third"]
    frames = await _logged(client, conversation_id)
    assert [(frame.json["position"], frame.json["text"]) for frame in frames if frame.event == "message.delta"] == [
        (3, "third"),
        (1, "first"),
    ]
    assert await problem(await _delta(client, second["id"], 5, "x"), 409, LENGTH_AND_STATUS)


async def test_an_import_takes_no_streaming_messages(client: Client) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    lines = b'{"role":"user","content":"x"}\n{"role":"user","status":"streaming"}\n'
    answer = await client.post(path, data=lines, headers={"Content-Type": "application/x-ndjson"})
    document = await problem(answer, 422, frozenset({"line", "accepted"}))
    assert (document["line"], document["accepted"]) == (2, 1)
    assert document["errors"][0]["pointer"] == "/status"


# Deltas.


@pytest.mark.parametrize("text", TEXTS)
async def test_a_text_that_comes_in_any_pieces_is_kept_whole(
    client: Client, message: dict[str, Any], text: str
) -> None:
    pieces = list(text)
    offset = 0
    async with _stream(client, message["conversation_id"]) as live:
        for piece in pieces:
            offset = await _appended(client, message["id"], offset, piece)
        assert offset == _units(text)
        read = await _read(client, message["id"])
        assert (read["status"], read["content"], read["length"], read["sha256"]) == ("streaming", text, None, None)
        finished = await (await _finish(client, message["id"])).json()
        seen = await live.until("message.completed")
    assert (finished["content"], finished["status"], finished["length"]) == (text, "complete", _units(text))
    assert finished["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert await _read(client, message["id"]) == finished
    assert _assembled(seen, message["id"]) == text
    assert seen[-1].json["message"] == finished
    logged = await _logged(client, message["conversation_id"])
    deltas = ["message.delta"] * len(pieces)
    assert [frame.event for frame in logged] == ["message.created", *deltas, "message.completed"]
    assert [frame.json["seq"] for frame in logged] == list(range(1, len(pieces) + 3))
    delta = logged[1].json
    assert delta == {
        "conversation_id": message["conversation_id"],
        "seq": 2,
        "message_id": message["id"],
        "position": 1,
        "offset": 0,
        "text": pieces[0],
    }


@pytest.mark.parametrize("text", TEXTS)
async def test_any_delta_that_agrees_with_what_is_there_appends_only_the_rest(client: Client, text: str) -> None:
    """Every piece of the text, cut between code points, is sent to a message that has every beginning of it."""
    conversation_id = await new_conversation(client)
    size = len(text)
    chance = random.Random(7)
    for _ in range(12):
        known = chance.randint(0, size)
        message = await _opened(client, conversation_id)
        if known:
            await _appended(client, message["id"], 0, text[:known])
        begin = chance.randint(0, known)
        end = chance.randint(begin, size)
        length = await _appended(client, message["id"], _units(text[:begin]), text[begin:end])
        assert length == _units(text[: max(known, end)])
        assert (await _read(client, message["id"]))["content"] == text[: max(known, end)]


async def test_a_repeated_delta_makes_no_event(client: Client, message: dict[str, Any]) -> None:
    for _ in range(3):
        assert await _appended(client, message["id"], 0, "one ") == 4
    assert await _appended(client, message["id"], 2, "e two") == 7
    assert await _appended(client, message["id"], 7, "") == 7
    frames = await _logged(client, message["conversation_id"])
    assert [frame.json["text"] for frame in frames if frame.event == "message.delta"] == ["one ", "two"]
    assert frames[-1].json["offset"] == 4


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        pytest.param(4, "x", id="a gap"),
        pytest.param(1_000_000, "", id="far beyond"),
        pytest.param(0, "b", id="another text"),
        pytest.param(0, "ab", id="another rest"),
        pytest.param(0, "a\U0001f601", id="half of the pair"),
        pytest.param(2, "\U0001f600", id="from within the pair"),
        pytest.param(2, "x", id="in the place of half of the pair"),
    ],
)
async def test_what_does_not_continue_the_text_is_409_with_its_length(
    client: Client, message: dict[str, Any], offset: int, text: str
) -> None:
    await _appended(client, message["id"], 0, "a\U0001f600")
    before = await _read(client, message["id"])
    document = await problem(await _delta(client, message["id"], offset, text), 409, LENGTH_AND_STATUS)
    assert document["type"] == "/problems/conflict"
    assert (document["length"], document["message_status"]) == (3, "streaming")
    assert await _read(client, message["id"]) == before
    assert len(await _logged(client, message["conversation_id"])) == 2


async def test_concurrent_duplicates_append_once(client: Client, message: dict[str, Any]) -> None:
    """Each delta many times at once; some know the message already, some do not."""
    offset = 0
    for text in TEXTS:
        answers = await asyncio.gather(*(_delta(client, message["id"], offset, text) for _ in range(8)))
        offset += _units(text)
        assert {answer.status for answer in answers} == {200}
        assert [await answer.json() for answer in answers] == [{"length": offset}] * 8
    frames = await _logged(client, message["conversation_id"])
    assert [frame.json["text"] for frame in frames if frame.event == "message.delta"] == TEXTS


async def test_many_writers_stream_into_one_conversation_at_once(client: Client) -> None:
    """Faulty ones: each repeats, overlaps and reorders what it sends, and goes on from what it is told."""
    conversation_id = await new_conversation(client)
    text = "".join(TEXTS) * 3

    async def write(seed: int) -> str:
        chance = random.Random(seed)
        message_id = str((await _opened(client, conversation_id))["id"])
        known = 0  # code points that the server has for certain
        while known < len(text):
            begin = chance.randint(max(0, known - 6), min(len(text), known + 2))
            end = min(len(text), begin + chance.randint(0, 30))
            answer = await _delta(client, message_id, _units(text[:begin]), text[begin:end])
            length = (await answer.json())["length"]
            assert (answer.status == 200) == (begin <= known)
            known = len(text.encode("utf-16-le")[: length * 2].decode("utf-16-le"))
        assert (await _finish(client, message_id)).status == 200
        return message_id

    async with asyncio.timeout(60), _stream(client, conversation_id) as live:
        message_ids = await asyncio.gather(*(write(seed) for seed in range(8)))
        frames: list[Frame] = []
        while sum(frame.event == "message.completed" for frame in frames) < len(message_ids):
            frames.append(await live.event())
    for message_id in message_ids:
        assert _assembled(frames, message_id) == text
        assert (await _read(client, message_id))["content"] == text
    seqs = [frame.json["seq"] for frame in frames if frame.event != "ready"]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_a_delta_that_fits_reads_nothing(
    client: Client, message: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await _appended(client, message["id"], 0, "a") == 1

    async def read(*arguments: Any) -> Any:
        raise AssertionError("the message was read")

    monkeypatch.setattr(Messages, "get_versioned", read)
    for offset in range(1, 5):
        assert await _appended(client, message["id"], offset, "a") == offset + 1


async def test_a_text_grows_to_its_limit_and_no_further(client: Client, message: dict[str, Any]) -> None:
    half = "😀" * (CONTENT_UNITS // 4)
    assert await _appended(client, message["id"], 0, half) == CONTENT_UNITS // 2
    for over in (half + "x", half + "😀"):
        answer = await _delta(client, message["id"], CONTENT_UNITS // 2, over)
        assert await fault(answer) == "pointer /text"
    assert await _appended(client, message["id"], CONTENT_UNITS // 2, half) == CONTENT_UNITS
    assert await fault(await _delta(client, message["id"], CONTENT_UNITS, "x")) == "pointer /text"
    assert await _appended(client, message["id"], CONTENT_UNITS, "") == CONTENT_UNITS
    finished = await (await _finish(client, message["id"])).json()
    assert (finished["content"], finished["length"]) == (half * 2, CONTENT_UNITS)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"offset":0}', "pointer /text"),
        (b'{"text":"x"}', "pointer /offset"),
        (b'{"offset":-1,"text":"x"}', "pointer /offset"),
        (b'{"offset":1048577,"text":""}', "pointer /offset"),
        (b'{"offset":0.5,"text":"x"}', "pointer /offset"),
        (b'{"offset":"0","text":"x"}', "pointer /offset"),
        (b'{"offset":0,"text":null}', "pointer /text"),
        (b'{"offset":0,"text":"a\\u0000b"}', "pointer /text"),
        (b'{"offset":0,"text":"\\ud83d"}', "pointer /text"),
        (b'{"offset":0,"text":"\\ude00"}', "pointer /text"),
        (b'{"offset":0,"text":"x","more":1}', "pointer /more"),
    ],
)
async def test_a_wrong_delta_is_422_with_its_pointer(
    client: Client, message: dict[str, Any], body: bytes, place: str
) -> None:
    path = f"/api/messages/{message['id']}/deltas"
    assert await fault(await client.post(path, data=body, headers={"Content-Type": "application/json"})) == place
    assert (await _read(client, message["id"]))["content"] == ""


# The end.


@pytest.mark.parametrize("status", ["complete", "failed", "cancelled"])
async def test_the_end_keeps_what_is_not_given(client: Client, status: str) -> None:
    conversation_id = await new_conversation(client)
    posted = {"metadata": {"a": 1}, "model": "m1", "usage": {"in": 1}, "tool_calls": [{"id": "c", "name": "find"}]}
    first, second = [await _opened(client, conversation_id, **posted) for _ in range(2)]
    kept = await (await _finish(client, first["id"], status)).json()
    assert {name: kept[name] for name in posted} == {name: first[name] for name in posted}
    given = {"model": "m2", "usage": {"out": 2}, "tool_calls": []}
    changed = await (await _finish(client, second["id"], status, **given)).json()
    assert {name: changed[name] for name in given} == given
    assert changed["metadata"] == {"a": 1}
    assert kept["status"] == changed["status"] == status
    kind = {"complete": "completed"}.get(status, status)
    assert [frame.event for frame in await _logged(client, conversation_id)] == [
        *["message.created"] * 2,
        *[f"message.{kind}"] * 2,
    ]


async def test_an_end_again_changes_nothing_and_another_one_is_409(client: Client, message: dict[str, Any]) -> None:
    await _appended(client, message["id"], 0, "text")
    finished = await (await _finish(client, message["id"], "cancelled", model="m")).json()
    again = await _finish(client, message["id"], "cancelled", model="other")
    assert (again.status, await again.json()) == (200, finished)
    for status in ("complete", "failed"):
        document = await problem(await _finish(client, message["id"], status), 409, STATUS)
        assert document["message_status"] == "cancelled"
    assert len(await _logged(client, message["conversation_id"])) == 3


async def test_after_the_end_no_delta_is_taken(client: Client, message: dict[str, Any]) -> None:
    await _appended(client, message["id"], 0, "text")
    await _finish(client, message["id"], "failed")
    for offset, text in ((4, "x"), (0, "text"), (4, "")):
        document = await problem(await _delta(client, message["id"], offset, text), 409, LENGTH_AND_STATUS)
        assert (document["length"], document["message_status"]) == (4, "failed")
    assert len(await _logged(client, message["conversation_id"])) == 3


async def test_an_end_waits_for_no_delta_and_loses_none(client: Client) -> None:
    """Whoever ends a message while others write into it gets all that they were told was taken."""
    conversation_id = await new_conversation(client)
    for _ in range(5):
        message_id = (await _opened(client, conversation_id))["id"]

        async def write(message_id: str = message_id) -> int:
            length = 0
            while (answer := await _delta(client, message_id, length, "ab")).status == 200:
                length = (await answer.json())["length"]
            return length

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            writer = group.create_task(write())
            while not (await _read(client, message_id))["content"]:
                pass
            finished = await _finish(client, message_id)
            assert finished.status == 200
        assert (await finished.json())["content"] == "ab" * (writer.result() // 2)


# Edits and deletions meanwhile.


async def test_a_streaming_message_cannot_be_edited(client: Client, message: dict[str, Any]) -> None:
    await _appended(client, message["id"], 0, "text")
    for edit in ({"content": "x"}, {"metadata": {"a": 1}}):
        await problem(await client.patch(f"/api/messages/{message['id']}", json=edit), 409)
    assert (await _read(client, message["id"]))["content"] == "text"
    await _finish(client, message["id"])
    edited = await client.patch(f"/api/messages/{message['id']}", json={"content": "edited"})
    assert (await edited.json())["content"] == "edited"


async def test_a_message_that_is_deleted_while_it_streams_is_shown_by_no_event(
    client: Client, message: dict[str, Any]
) -> None:
    for n, text in enumerate(["secret ", "words "]):
        await _appended(client, message["id"], n * 7, text)
    assert (await client.delete(f"/api/messages/{message['id']}")).status == 204
    read = await _read(client, message["id"])
    assert (read["status"], read["content"], read["length"]) == ("deleted", "", 0)
    document = await problem(await _delta(client, message["id"], 13, "more"), 409, LENGTH_AND_STATUS)
    assert document["length"] == 0
    await problem(await _finish(client, message["id"]), 409, STATUS)
    frames = await _logged(client, message["conversation_id"])
    assert [frame.event for frame in frames] == ["message.deleted"] * 4
    assert not any("secret" in frame.data or "words" in frame.data for frame in frames)


async def test_a_message_is_deleted_while_its_writer_goes_on(client: Client) -> None:
    conversation_id = await new_conversation(client)
    for _ in range(5):
        message_id = (await _opened(client, conversation_id))["id"]

        async def write(message_id: str = message_id) -> None:
            length = 0
            while (answer := await _delta(client, message_id, length, "secret")).status == 200:
                length = (await answer.json())["length"]

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(write())
            while not (await _read(client, message_id))["content"]:
                pass
            assert (await client.delete(f"/api/messages/{message_id}")).status == 204
    assert not any("secret" in frame.data for frame in await _logged(client, conversation_id))


async def test_a_message_of_a_deleted_conversation_is_not_found(client: Client, message: dict[str, Any]) -> None:
    await _appended(client, message["id"], 0, "text")
    assert (await client.delete(f"/api/conversations/{message['conversation_id']}")).status == 204
    for answer in (await _delta(client, message["id"], 4, "x"), await _finish(client, message["id"])):
        assert (await problem(answer, 404))["detail"] == "There is no such message."


async def test_an_unknown_message_is_404(client: Client) -> None:
    for message_id in (UNKNOWN, "x"):
        await problem(await _delta(client, message_id, 0, "x"), 404)
        await problem(await _finish(client, message_id), 404)


# Idempotency keys.


async def test_a_key_gets_the_same_answer_again_whatever_has_happened_since(
    client: Client, message: dict[str, Any]
) -> None:
    first = await _delta(client, message["id"], 0, "one", **{"Idempotency-Key": "d1"})
    await _appended(client, message["id"], 3, " two")
    path, end = f"/api/messages/{message['id']}/finish", {"status": "complete"}
    finished = await client.post(path, json=end, headers={"Idempotency-Key": "f1"})
    assert finished.status == 200
    assert (await client.delete(f"/api/messages/{message['id']}")).status == 204
    for answer, told in (
        (await _delta(client, message["id"], 0, "one", **{"Idempotency-Key": "d1"}), first),
        (await client.post(path, json=end, headers={"Idempotency-Key": "f1"}), finished),
    ):
        assert (answer.status, await answer.read()) == (200, await told.read())
        assert answer.headers["Idempotency-Replayed"] == "true"


async def test_a_key_for_another_delta_is_422(client: Client, message: dict[str, Any]) -> None:
    await _delta(client, message["id"], 0, "one", **{"Idempotency-Key": "k"})
    for offset, text in ((3, "two"), (0, "on"), (9, "x")):
        answer = await _delta(client, message["id"], offset, text, **{"Idempotency-Key": "k"})
        assert (await problem(answer, 422))["type"] == "/problems/idempotency-key-reused"
    assert (await _read(client, message["id"]))["content"] == "one"


async def test_both_routes_are_described_with_what_their_conflicts_say(client: Client) -> None:
    document = await (await client.get("/openapi.json")).json()
    for name, member in (("deltas", "DeltaConflict"), ("finish", "EndConflict")):
        described = document["paths"][f"/api/messages/{{message_id}}/{name}"]["post"]["responses"]["409"]
        schema = described["content"]["application/problem+json"]["schema"]
        assert {"$ref": f"#/components/schemas/{member}"} in schema["allOf"]
    assert msgspec.json.encode(document)
