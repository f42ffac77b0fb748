"""Every error has one shape, and names what is wrong."""

import asyncio
import gzip
import io
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs
from yarl import URL

from tests.api import Client, fault, new_conversation, problem

JSON = {"Content-Type": "application/json"}
NOWHERE = "/api/conversations/00000000-0000-7000-8000-000000000000"


@pytest.fixture
def environment() -> dict[str, str]:
    return {"SWARM_MAX_BODY": "4194304"}


async def send(client: Client, body: bytes, **headers: str) -> Any:
    """Posts bytes as a message's body, to a conversation that need not exist: parsing comes first."""
    return await client.post(f"{NOWHERE}/messages", data=io.BytesIO(body), headers={**JSON, **headers})


async def test_an_unknown_path_is_404(client: Client) -> None:
    document = await problem(await client.get("/api/nothing?secret=x"), 404)
    assert document["instance"] == "/api/nothing"


async def test_a_wrong_method_is_405_and_says_which_are_right(client: Client) -> None:
    response = await client.post("/api/agents/bug_01")
    await problem(response, 405)
    assert set(response.headers["Allow"].replace(" ", "").split(",")) == {"GET", "HEAD", "PUT", "DELETE"}


@pytest.mark.parametrize("identifier", ["x", "%00", "%ff", "'", "0" * 5_000, "00000000-0000-7000-8000-00000000000g"])
async def test_what_is_no_id_is_not_found(client: Client, identifier: str) -> None:
    for path in ("/api/conversations/", "/api/messages/"):
        await problem(await client.get(URL(f"{path}{identifier}", encoded=True)), 404)
    await problem(await client.get(URL(f"/api/agents/{identifier}!", encoded=True)), 404)


async def test_an_id_may_be_in_upper_case(client: Client) -> None:
    conversation_id = await new_conversation(client)
    found = await client.get(f"/api/conversations/{conversation_id.upper()}")
    assert (await found.json())["id"] == conversation_id


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/json; charset=latin-1", "application/jsonx", "multipart/form-data", ";;;"],
)
async def test_another_media_type_is_415_and_says_which_are_read(client: Client, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = await client.post(f"{NOWHERE}/messages", data=b"{}", headers=headers, skip_auto_headers=["Content-Type"])
    await problem(response, 415)
    assert response.headers["Accept"] == "application/json, application/x-ndjson"


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"'])
async def test_utf_8_may_be_named(client: Client, charset: str) -> None:
    response = await client.post(
        "/api/conversations", data=b"{}", headers={"Content-Type": f"application/json; charset={charset}"}
    )
    assert response.status == 201


@pytest.mark.parametrize("coding", ["x-own", "br", "zstd", "gzip, gzip"])
async def test_an_unknown_content_coding_is_415(client: Client, coding: str) -> None:
    response = await send(client, b"{}", **{"Content-Encoding": coding})
    await problem(response, 415)
    assert response.headers["Accept-Encoding"] == "gzip, deflate"


async def test_a_compressed_body_is_read_and_its_limit_holds_for_what_is_in_it(client: Client) -> None:
    conversation_id = await new_conversation(client)
    path, headers = f"/api/conversations/{conversation_id}/messages", {**JSON, "Content-Encoding": "gzip"}
    body = gzip.compress(b'{"role":"user","content":"squeezed"}')
    assert (await client.post(path, data=body, headers=headers)).status == 201
    bomb = gzip.compress(b'{"role":"user","content":"' + b"a" * 50_000_000 + b'"}')
    await problem(await client.post(path, data=bomb, headers=headers), 413)
    await problem(await client.post(path, data=b"not gzip at all", headers=headers), 400)


async def test_a_body_that_is_too_large_is_413(client: Client) -> None:
    await problem(await send(client, b"[" + b" " * 4_194_304), 413)


async def test_a_chunked_body_that_grows_too_large_is_413(client: Client) -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 65_536

    await problem(await client.post(f"{NOWHERE}/messages", data=chunks(), headers=JSON), 413)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nothing",
        b'{"role":"user","content":"x"} x',
        b'{"role":"user","content":1} x',
        b'{"role":"user","content":"a\x00b"}',
        b'{"role":"user","content":"a\nb"}',
        b'{"role":"user","content":NaN}',
        b'{"role":"user","content":"\xff"}',
        b'{"role":"user","content":"x","metadata":{"\xed\xa0\x80":1}}',
        b'{"role":"user","content":1,"metadata":{"a":"\xff"}}',
        b'\xef\xbb\xbf{"role":"user","content":"x"}',
        '{"role":"user","content":"x"}'.encode("utf-16"),
        b'{"role":"user","content":"\\ud83d\\',
        b"[" * 100_000,
        b'{"role":"user","content":"x","metadata":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"role":"user","content":"\\ud800","metadata":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    ],
)
async def test_what_is_no_json_in_utf_8_is_400(client: Client, body: bytes) -> None:
    await problem(await send(client, body), 400)


async def test_a_byte_order_mark_is_called_by_its_name(client: Client) -> None:
    document = await problem(await send(client, b"\xef\xbb\xbf{}"), 400)
    assert "byte order mark" in document["detail"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"null", ""),
        (b'"x"', ""),
        (b"[]", ""),
        (b"[1]", "/0"),
        (b"{}", "/role"),
        (b'{"role":"user"}', "/content"),
        (b'{"role":"user","content":1}', "/content"),
        (b'{"role":"guest","content":"x"}', "/role"),
        (b'{"role":"user","content":"x","colour":1}', "/colour"),
        (b'{"role":"user","content":"x","a/b~c":1}', "/a~1b~0c"),
        (b'[{"role":"user","content":"x"},{"role":"user","content":null}]', "/1/content"),
        (b'[{"role":"user","content":"x"},{"role":"user"}]', "/1/content"),
        (b'[{"role":"user","content":"x","metadata":3}]', "/0/metadata"),
        (b'{"role":"user","content":"x","metadata":[]}', "/metadata"),
        (b'{"role":"user","content":"x","status":"failed"}', "/status"),
        (b'{"role":"user","content":"x","status":"streaming"}', "/content"),
        (b'{"role":"user","content":"x","reply_to":"x"}', "/reply_to"),
        (b'{"role":"user","content":"x","agent_id":"bug_01"}', "/agent_id"),
        (b'{"role":"agent","content":"x"}', "/agent_id"),
        (b'{"role":"agent","content":"x","agent_id":"Nobody!"}', "/agent_id"),
        (b'{"role":"user","content":"x","model":""}', "/model"),
        (b'{"role":"user","content":"x","tool_calls":[{"id":"1"}]}', "/tool_calls/0/name"),
        (
            b'{"role":"user","content":"x","tool_calls":[{"id":"1","name":"n","started_at":"2026-01-01T00:00:00"}]}',
            "/tool_calls/0/started_at",
        ),
        (
            b'{"role":"user","content":"x","tool_calls":[{"id":"1","name":"n","ended_at":"0001-01-01T00:00:00+05:00"}]}',
            "/tool_calls/0",
        ),
        (b'{"role":"user","content":"' + b"a" * 1_048_577 + b'"}', "/content"),
        (b'{"role":"user","content":"' + "é".encode() * 524_289 + b'"}', "/content"),
        (b'{"role":"user","content":"x","metadata":{"a":"' + b"a" * 16_384 + b'"}}', "/metadata"),
        (b'{"role":"user","content":"x","metadata":{"a":' + b"9" * 5_000 + b"}}", "/metadata"),
        (b'{"role":"user","content":"x","metadata":{"a":1e400}}', "/metadata"),
        (b'{"role":"user","content":"x","metadata":{"a":[1,18446744073709551616]}}', "/metadata/a/1"),
        (b'{"role":"user","content":"x","metadata":{"a":-9223372036854775809}}', "/metadata/a"),
        (b'{"role":"user","content":' + b"9" * 5_000 + b"}", "/content"),
        (
            b'{"role":"user","content":"x","metadata":{"a":' + b"[" * 32 + b"]" * 32 + b"}}",
            "/metadata/a" + "/0" * 31,
        ),
        (
            b'{"role":"user","content":"x","metadata":{"a":' + b"[" * 500 + b"]" * 500 + b"}}",
            "/metadata/a" + "/0" * 31,
        ),
    ],
)
async def test_what_is_wrong_in_a_body_is_422_with_its_pointer(client: Client, body: bytes, place: str) -> None:
    assert await fault(await send(client, body)) == f"pointer {place}"


@pytest.mark.parametrize("escape", [b"\\u0000", b"\\ud800", b"\\udfff", b"\\uD83D", b"\\ud83dx", b"\\ude00\\ud83d"])
@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"role":"user","content":"a%sb"}', "/content"),
        (b'{"role":"user","content":"x","metadata":{"a":["b",{"c":"%s"}]}}', "/metadata/a/1/c"),
        (b'[{"role":"user","content":"x"},{"role":"user","content":"%s"}]', "/1/content"),
        (b'{"role":"user","content":"x","tool_calls":[{"id":"1","name":"n","result":"%s"}]}', "/tool_calls/0/result"),
        (b'{"role":"user","content":"x","colour":"%s"}', "/colour"),
        (b'{"role":"%s","content":1}', "/role"),
    ],
)
async def test_nul_and_lone_surrogates_in_any_text_are_422(
    client: Client, escape: bytes, body: bytes, place: str
) -> None:
    assert await fault(await send(client, body % escape)) == f"pointer {place}"


@pytest.mark.parametrize(("escape", "shown"), [(b"\\u0000", "\x00"), (b"\\ud800", "\ufffd")])
async def test_nul_and_lone_surrogates_in_keys_are_422(client: Client, escape: bytes, shown: str) -> None:
    body = b'{"role":"user","content":"x","metadata":{"a":{"b%sc":1}}}' % escape
    assert await fault(await send(client, body)) == f"pointer /metadata/a/b{shown}c"
    assert await fault(await send(client, b'{"%s":1}' % escape)) == f"pointer /{shown}"


@pytest.mark.parametrize("text", [b"\\ud83d\\ude00", b"\\\\u0000", b"\\\\ud800", "😀".encode(), b"\\u00e9", b"\\u2028"])
async def test_what_only_looks_like_it_is_stored(client: Client, text: bytes) -> None:
    conversation_id = await new_conversation(client)
    body = b'{"role":"user","content":"%s","metadata":{"%s":"%s"}}' % (text, text, text)
    posted = await client.post(f"/api/conversations/{conversation_id}/messages", data=body, headers=JSON)
    assert posted.status == 201, await posted.text()
    message = await posted.json()
    assert message["metadata"] == {message["content"]: message["content"]}


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=", "limit"),
        ("limit=+5", "limit"),
        ("limit=-5", "limit"),
        ("limit=5.0", "limit"),
        ("limit=1_0", "limit"),
        ("limit=%D9%A3", "limit"),  # a digit, in another script
        ("limit=" + "9" * 5_000, "limit"),
        ("limit=" + "0" * 5_000 + "5", "limit"),
        ("limit=5&limit=5", "limit"),
        ("colour=red", "colour"),
        ("%00=1", "\x00"),
        ("Limit=5", "Limit"),
        ("cursor=x%00", "cursor"),
        ("cursor=" + "x" * 201, "cursor"),
        ("cursor=not!a!cursor", "cursor"),
        ("cursor=", "cursor"),
    ],
)
@pytest.mark.parametrize("path", ["/api/conversations", "/api/messages", "/api/agents"])
async def test_a_wrong_query_parameter_is_422_and_named(client: Client, path: str, query: str, parameter: str) -> None:
    response = await client.get(URL(f"{path}?{query}", encoded=True))
    assert await fault(response) == f"parameter {parameter}"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("from=0", "from"),
        ("before=0", "before"),
        ("around=-1", "around"),
        ("after=9007199254740992", "after"),
        ("from=" + "9" * 5_000, "from"),
        ("from=1&before=2", "from"),
        ("offset=1", "offset"),
    ],
)
async def test_a_wrong_place_of_a_window_is_422(client: Client, query: str, parameter: str) -> None:
    conversation_id = await new_conversation(client)
    response = await client.get(f"/api/conversations/{conversation_id}/messages?{query}")
    assert await fault(response) == f"parameter {parameter}"


async def test_a_parameter_of_a_route_that_has_none_is_422(client: Client) -> None:
    assert await fault(await client.get("/api/agents/bug_01?full=1")) == "parameter full"
    assert await fault(await client.post("/api/conversations?dry=1", json={})) == "parameter dry"


@pytest.mark.parametrize("key", ["", " ", "a b", "ключ", "a" * 256, "a\tb"])
async def test_a_bad_idempotency_key_is_422_and_named(client: Client, key: str) -> None:
    response = await client.post("/api/conversations", json={}, headers={"Idempotency-Key": key})
    assert await fault(response) == "header Idempotency-Key"


async def test_two_idempotency_keys_are_422(client: Client) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    response = await client.post("/api/conversations", json={}, headers=headers)
    assert await fault(response) == "header Idempotency-Key"


async def test_an_idempotency_key_for_another_request_is_422(client: Client) -> None:
    headers = {"Idempotency-Key": "once"}
    assert (await client.post("/api/conversations", json={}, headers=headers)).status == 201
    document = await problem(await client.post("/api/conversations", json={"title": "x"}, headers=headers), 422)
    assert document["type"] == "/problems/idempotency-key-reused"
    assert document["errors"][0]["header"] == "Idempotency-Key"


async def test_an_expectation_that_cannot_be_met_is_417(client: Client) -> None:
    await problem(await client.get("/health", headers={"Expect": "the impossible"}), 417)
    await problem(await client.get("/nowhere", headers={"Expect": "the impossible"}), 417)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 1_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
        b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Length: abc\r\n\r\n",
        (
            b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        ),
    ],
)
async def test_what_the_http_parser_refuses_has_the_same_shape(client: Client, request_bytes: bytes) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(request_bytes)
    async with asyncio.timeout(10):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert status.split()[1] == "400"
    assert headers["Content-Type"] == "application/problem+json"
    document = msgspec.json.decode(body)
    assert document["type"] == "/problems/malformed"
    assert document["request_id"] == headers["X-Request-ID"]
    assert headers["Server"] == "swarm"
    assert set(document) == {"type", "title", "status", "detail", "instance", "request_id", "errors"}


async def test_a_body_that_breaks_its_chunking_is_400(client: Client) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(
        b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nXX\r\n\r\n"
    )
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert b" 400 " in head.splitlines()[0]
    assert b"application/problem+json" in head


@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson"])
async def test_a_body_that_breaks_its_chunking_later_is_400_at_once(client: Client, media_type: str) -> None:
    conversation_id = await new_conversation(client)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(
        f"POST /api/conversations/{conversation_id}/messages HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n".encode()
    )
    await writer.drain()
    # The answer to another request shows that the first chunk of this one has been read.
    await client.get("/health/live")
    writer.write(b"XX\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert b" 400 " in answer.splitlines()[0]
    assert answer.count(b"HTTP/1.") == 1
    assert b"Connection: close" in answer


@pytest.mark.parametrize("body", [b"no gzip", gzip.compress(b'{"title":"x"}')[:10] + b"\xff" * 400])
async def test_a_body_that_is_not_in_its_coding_is_400_and_one_line_in_the_log(client: Client, body: bytes) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    with capture_logs() as lines:
        # More is announced than comes: what aiohttp would read on for.
        writer.write(
            b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Encoding: gzip\r\nContent-Length: 5000\r\n\r\n" + body
        )
        async with asyncio.timeout(10):
            answer = await reader.read()
    writer.close()
    assert b" 400 " in answer.splitlines()[0]
    assert b"Connection: close" in answer
    assert [(line["event"], line["status"]) for line in lines] == [("request", 400)]


@pytest.mark.parametrize("given", ["abc-123", "!" * 128])
async def test_a_sane_request_id_is_taken_over(client: Client, given: str) -> None:
    for path in ("/health/live", "/nowhere"):
        response = await client.get(path, headers={"X-Request-ID": given})
        assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["a" * 129, "a b", "é"])
async def test_another_request_id_is_not(client: Client, given: str) -> None:
    response = await client.get("/health/live", headers={"X-Request-ID": given})
    assert response.headers["X-Request-ID"] != given
    assert len(response.headers["X-Request-ID"]) == 36
