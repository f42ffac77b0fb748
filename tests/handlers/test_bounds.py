"""Whatever is sent, however deep, long, large or odd: it is refused by name or stored as it was meant."""

import asyncio
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta, Struct

from handlers.free_form import METADATA_BYTES, TOOL_CALLS_BYTES
from server.routes import ROUTES
from tests.api import Client, fault, new_conversation, problem
from tests.bounds import unbounded

NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}
DEEP = 100_000


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One of the two is enough: what is refused never reaches a database."""
    return sqlite_url


# Every type.


class _Open(Struct):
    text: str
    pattern: Annotated[str, Meta(pattern="^a+$")]
    number: Annotated[int, Meta(ge=0)]
    texts: list[Annotated[str, Meta(max_length=1)]]
    members: dict[Annotated[str, Meta(max_length=1)], Any]


class _Bounded(Struct, forbid_unknown_fields=True):
    text: Annotated[str, Meta(max_length=1)] | None
    pattern: Annotated[str, Meta(pattern="^[a-z]{1,9}$")]
    told: Annotated[str, Meta(extra_json_schema={"maxLength": 9})]
    number: Annotated[int, Meta(ge=0, le=9)]
    inner: Annotated[list["_Bounded"], Meta(max_length=1)]
    free: Annotated[dict[str, Any], Meta(extra_json_schema={"x-maxBytes": 9})]
    id: UUID
    time: datetime | bool | None
    choice: Literal["a"]


def test_what_has_no_bound_is_found() -> None:
    assert unbounded(_Open) == [
        "/members/value: anything",
        "/members: object",
        "/number: number",
        "/pattern: text",
        "/text: text",
        "/texts: array",
        ": unknown fields",
    ]
    assert unbounded(_Bounded) == []
    assert unbounded(list[str]) == ["/0: text", ": array"]
    with pytest.raises(TypeError, match="nobody has said"):
        unbounded(set[int])


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.name))
def test_everything_that_a_client_can_send_has_a_bound(route: Any) -> None:
    assert route.body is None or unbounded(route.body) == []
    # What a query does not know is refused by its reader.
    assert [place for place in unbounded(route.query) if place != ": unknown fields"] == []


# Depth.

_NESTED = {
    "arrays": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "open": b"[" * DEEP,
}
_MESSAGE = b'{"role":"user","content":"x",'
_BODIES = {
    "itself": b"%s",
    "a known field": b'{"role":"user","content":%s}',
    "an unknown field": _MESSAGE + b'"nobody":%s}',
    "metadata": _MESSAGE + b'"metadata":{"a":%s}}',
    "usage": _MESSAGE + b'"usage":{"a":%s}}',
    "arguments": _MESSAGE + b'"tool_calls":[{"id":"1","name":"n","arguments":{"a":%s}}]}',
    "result": _MESSAGE + b'"tool_calls":[{"id":"1","name":"n","result":%s}]}',
    "behind what is wrong": b'{"role":1,"metadata":{"a":%s}}',
    "behind NUL": b'{"role":"user","content":"\\u0000","metadata":{"a":%s}}',
}


@pytest.mark.parametrize("nested", list(_NESTED))
@pytest.mark.parametrize("place", list(_BODIES))
async def test_a_body_of_any_depth_is_refused_and_the_server_lives(client: Client, place: str, nested: str) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    body = _BODIES[place].replace(b"%s", _NESTED[nested])
    answer = await client.post(path, data=body, headers=JSON)
    assert answer.status in {400, 422}
    await problem(answer, answer.status)
    imported = await client.post(path, data=_MESSAGE[:-1] + b"}\n" + body + b"\n", headers=NDJSON)
    document = await problem(imported, 422, frozenset({"line", "accepted"}))
    assert (document["line"], document["accepted"]) == (2, 1)
    assert (await (await client.get(path)).json())["total"] == 1


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _free(place: str, value: Any) -> tuple[dict[str, Any], int]:
    """A message with the value in that place, and how deep it lies there."""
    message = {"role": "user", "content": "x"}
    if place in {"metadata", "usage"}:
        return {**message, place: {"a": value}}, 1
    call = {"id": "1", "name": "n", place: {"a": value}}
    return {**message, "tool_calls": [call]}, 3


@pytest.mark.parametrize("environment", [{"SWARM_MAX_DEPTH": "5"}, {}, {"SWARM_MAX_DEPTH": "256"}], ids=str)
@pytest.mark.parametrize("place", ["metadata", "usage", "arguments", "result"])
async def test_free_form_json_may_be_as_deep_as_is_set(client: Client, environment: dict[str, str], place: str) -> None:
    most = int(environment.get("SWARM_MAX_DEPTH", "32"))
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    _, above = _free(place, None)
    fits, _ = _free(place, _nested(most - above))
    stored = await client.post(path, json=fits)
    assert stored.status == 201
    told = await stored.json()
    assert {name: told[name] for name in ("metadata", "usage") if name in fits} == {
        name: fits[name] for name in ("metadata", "usage") if name in fits
    }
    too_deep, _ = _free(place, _nested(most - above + 1))
    where = await fault(await client.post(path, json=too_deep))
    assert where.startswith("pointer /")
    assert where.count("/") == most + 1
    assert place in where.split("/")


# Lengths.


@pytest.mark.parametrize(
    ("place", "most"),
    [
        ("metadata", METADATA_BYTES),
        ("usage", METADATA_BYTES),
        ("arguments", TOOL_CALLS_BYTES),
        ("result", TOOL_CALLS_BYTES),
    ],
)
async def test_free_form_json_is_bounded_as_its_schema_says(client: Client, place: str, most: int) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    message, _ = _free(place, "x" * most)
    assert await fault(await client.post(path, json=message)) in {f"pointer /{place}", "pointer /tool_calls"}
    message, _ = _free(place, "x" * (most - 300))
    assert (await client.post(path, json=message)).status == 201


@pytest.mark.parametrize("environment", [{"SWARM_MAX_CONTENT": "10"}])
async def test_a_text_may_be_as_long_as_is_set(client: Client) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    fits, too_long = "€€€1", "€€€12"  # 10 bytes, and 11
    posted = await client.post(path, json={"role": "user", "content": fits})
    assert posted.status == 201
    message = (await posted.json())["id"]
    for method, target, body, place in (
        ("POST", path, {"role": "user", "content": too_long}, "/content"),
        ("POST", path, [{"role": "user", "content": fits}, {"role": "user", "content": too_long}], "/1/content"),
        ("PATCH", f"/api/messages/{message}", {"content": too_long}, "/content"),
    ):
        answer = await client.request(method, target, json=body)
        assert await fault(answer) == f"pointer {place}"
    lines = b"".join(msgspec.json.encode({"role": "user", "content": text}) + b"\n" for text in (fits, too_long))
    document = await problem(await client.post(path, data=lines, headers=NDJSON), 422, frozenset({"line", "accepted"}))
    assert (document["line"], document["accepted"], document["errors"][0]["pointer"]) == (2, 1, "/content")
    streaming = await (await client.post(path, json={"role": "user", "status": "streaming"})).json()
    deltas = f"/api/messages/{streaming['id']}/deltas"
    assert (await client.post(deltas, json={"offset": 0, "text": "€" * 8})).status == 200
    assert await fault(await client.post(deltas, json={"offset": 8, "text": "€€€"})) == "pointer /text"
    assert await (await client.post(deltas, json={"offset": 8, "text": "€€"})).json() == {"length": 10}
    assert (await (await client.get(path)).json())["total"] == 3


@pytest.mark.parametrize("header", ["Last-Event-ID", "X-Request-ID", "Idempotency-Key", "X-Anything"])
@pytest.mark.parametrize(("length", "status"), [(8_000, 0), (9_000, 400)])
async def test_a_header_of_any_length_is_answered(client: Client, header: str, length: int, status: int) -> None:
    answer = await client.get(f"/api/conversations/{await new_conversation(client)}", headers={header: "1" * length})
    assert answer.status == (status or 200)
    assert len(answer.headers["X-Request-ID"]) <= 128


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/api/conversations/" + "a" * 8_000, 404),
        ("/api/conversations/" + "a" * 9_000, 400),
        ("/api/conversations?cursor=" + "a" * 8_000, 422),
        ("/api/conversations?" + "&".join(f"limit={number}" for number in range(700)), 422),
        ("/api/conversations?limit=" + "9" * 8_000, 422),
        ("/api/events?conversations=" + ",".join(f"a{number}" for number in range(65)), 422),
        ("/api/events?conversations=a:" + "9" * 7_000, 422),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_target_of_any_length_is_answered(client: Client, target: str, status: int) -> None:
    async with asyncio.timeout(10):
        await problem(await client.get(target), status)


# Numbers.

_HUGE = b"9" * 5_000


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (b"1e999", 422),
        (b"-1e999", 422),
        (_HUGE, 422),
        (b"9" * 30, 422),
        (b"18446744073709551616", 422),
        (b"-9223372036854775809", 422),
        (b"18446744073709551615", 201),
        (b"-9223372036854775808", 201),
        (b"-0", 201),
        (b"-0.0", 201),
        (b"1e308", 201),
        (b"NaN", 400),
        (b"Infinity", 400),
        (b"-Infinity", 400),
        (b"01", 400),
        (b"1.", 400),
        (b"+1", 400),
        (b"0x10", 400),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_number_is_stored_as_it_was_or_refused(client: Client, number: bytes, status: int) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    answer = await client.post(path, data=_MESSAGE + b'"metadata":{"a":' + number + b"}}", headers=JSON)
    if status == 201:
        assert answer.status == 201
        stored = (await answer.json())["metadata"]["a"]
        assert stored == msgspec.json.decode(number)
    else:
        document = await problem(answer, status)
        assert status == 400 or document["errors"][0]["pointer"].startswith("/metadata")


@pytest.mark.parametrize("number", [b"1e999", b"9" * 30, _HUGE, b"-1", b"0.5", b"1e0"], ids=lambda n: str(n)[:20])
async def test_a_number_of_a_field_keeps_its_bounds(client: Client, number: bytes) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    streaming = await (await client.post(path, json={"role": "user", "status": "streaming"})).json()
    body = b'{"text":"","offset":' + number + b"}"
    answer = await client.post(f"/api/messages/{streaming['id']}/deltas", data=body, headers=JSON)
    assert await fault(answer) == "pointer /offset"


# What JSON leaves open.


async def test_of_members_with_one_name_the_last_counts(client: Client) -> None:
    """As with most readers (RFC 8259, 4); each of them must be right all the same."""
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    body = b'{"role":"user","content":"a","content":"b","metadata":{"k":1,"k":2}}'
    stored = await (await client.post(path, data=body, headers=JSON)).json()
    assert (stored["content"], stored["metadata"]) == ("b", {"k": 2})
    body = b'{"role":"user","content":1,"content":"b"}'
    assert await fault(await client.post(path, data=body, headers=JSON)) == "pointer /content"


def _broken() -> Iterable[bytes]:
    yield b'\xef\xbb\xbf{"role":"user","content":"a"}'
    for bad in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
        yield b'{"role":"user","content":"a' + bad + b'"}'
        yield b'{"role":"user","content":"a","metadata":{"' + bad + b'":1}}'


@pytest.mark.parametrize("body", list(_broken()), ids=ascii)
async def test_what_is_no_utf_8_is_called_so_in_a_line_as_well(client: Client, body: bytes) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    document = await problem(await client.post(path, data=body, headers=JSON), 400)
    assert re.search("UTF-8|byte order mark", document["detail"])
    lines = b'{"role":"user","content":"kept"}\n' + body + b"\n"
    told = await problem(await client.post(path, data=lines, headers=NDJSON), 422, frozenset({"line", "accepted"}))
    assert (told["line"], told["accepted"]) == (2, 1)
