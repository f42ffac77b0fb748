"""Answers as they go over the connection: the head that `handlers.encoded_response` writes itself."""

from __future__ import annotations

import asyncio
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from handlers.encoded_response import EncodedResponse
from tests.api import Client

_TIMEOUT = 10.0


async def _exchange(client: Client, request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Everything that is sent until the server closes the connection: status line, fields, body."""
    async with asyncio.timeout(_TIMEOUT):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
        try:
            writer.write(request)
            answer = await reader.read()
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines)  # none comes twice
    return status, fields, body


async def test_an_answer_is_whole_http(client: Client) -> None:
    status, fields, body = await _exchange(
        client, b"GET /api/conversations HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: mine\r\nConnection: close\r\n\r\n"
    )
    assert status == "HTTP/1.1 200 OK"
    assert fields["Content-Type"] == "application/json"
    assert int(fields["Content-Length"]) == len(body) > 0
    assert (fields["Connection"], fields["Server"], fields["X-Request-ID"]) == ("close", "swarm", "mine")
    assert parsedate_to_datetime(fields["Date"]).tzinfo is not None


async def test_the_answer_to_head_has_the_length_and_no_body(client: Client) -> None:
    get, got, body = await _exchange(
        client, b"GET /api/agents HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    head, fields, nothing = await _exchange(
        client, b"HEAD /api/agents HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert head == get
    assert fields["Content-Length"] == got["Content-Length"] == str(len(body))
    assert nothing == b""


async def test_no_content_says_no_length(client: Client) -> None:
    made = await (await client.post("/api/conversations", json={})).json()
    status, fields, body = await _exchange(
        client,
        f"DELETE /api/conversations/{made['id']} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
    )
    assert status == "HTTP/1.1 204 No Content"
    assert "Content-Length" not in fields
    assert "Content-Type" not in fields
    assert body == b""


@pytest.mark.parametrize(
    ("version", "asked", "said"),
    [("1.0", "", "close"), ("1.0", "Connection: keep-alive\r\n", "keep-alive"), ("1.1", "", None)],
)
async def test_whether_the_connection_stays(client: Client, version: str, asked: str, said: str | None) -> None:
    """HTTP/1.0 closes unless it was asked not to (RFC 9112, 9.3)."""
    request = f"GET /health/live HTTP/{version}\r\nHost: localhost\r\n{asked}\r\n".encode()
    async with asyncio.timeout(_TIMEOUT):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        await reader.readexactly(length)
        if said == "close":
            assert await reader.read() == b""
        else:
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(f"HTTP/{version} 200".encode())
        writer.close()
    if said is None:
        assert "connection:" not in head.lower()
    elif said == "keep-alive" or version == "1.1":
        assert f"connection: {said}" in head.lower()


async def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    requests = b"".join(
        f"GET /api/agents HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: r{n}\r\n\r\n".encode() for n in range(5)
    )
    last = b"GET /api/agents HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: last\r\nConnection: close\r\n\r\n"
    async with asyncio.timeout(_TIMEOUT):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
        writer.write(requests + last)
        answers = (await reader.read()).decode()
        writer.close()
    found = [part.partition("\r\n")[0] for part in answers.split("X-Request-ID: ")[1:]]
    assert found == ["r0", "r1", "r2", "r3", "r4", "last"]


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb"])
def test_no_header_ends_its_line(value: str) -> None:
    class Asked:
        version = (1, 1)
        method = "GET"
        keep_alive = True

    response = EncodedResponse(200, b"{}", "application/json", {"X-Given": value})
    request: Any = Asked()
    with pytest.raises(ValueError, match="X-Given"):
        response._head(request)
