"""Faults of the server, and clients that go away."""

import asyncio
import socket
import struct
from typing import Any

import pytest
from structlog.testing import capture_logs

from storage import errors
from storage.windows import Windows
from tests.api import Client, new_conversation, problem


def failing(error: Exception) -> Any:
    async def read(*arguments: Any, **options: Any) -> Any:
        raise error

    return read


async def test_a_500_tells_nothing_but_an_id_that_is_in_the_log(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation_id = await new_conversation(client)
    monkeypatch.setattr(Windows, "read", failing(ValueError("the secret of the day")))
    with capture_logs() as lines:
        response = await client.get(f"/api/conversations/{conversation_id}/messages")
        document = await problem(response, 500)
    assert "secret" not in await response.text()
    failure = next(line for line in lines if line["event"] == "request failed")
    assert isinstance(failure["exc_info"], ValueError)
    request = next(line for line in lines if line["event"] == "request")
    assert request["request_id"] == document["request_id"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.StorageUnavailable("no"), 503, "unavailable"),
        (errors.QueueFull("no"), 503, "unavailable"),
        (errors.Contended("no"), 503, "unavailable"),
        (errors.StorageFull("no"), 507, "full"),
        (ConnectionRefusedError("by a database, say"), 500, "internal"),
        (TimeoutError(), 500, "internal"),
        (RecursionError(), 500, "internal"),
    ],
)
async def test_what_storage_raises_becomes_a_problem(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, kind: str
) -> None:
    conversation_id = await new_conversation(client)
    monkeypatch.setattr(Windows, "read", failing(error))
    response = await client.get(f"/api/conversations/{conversation_id}/messages")
    document = await problem(response, status)
    assert document["type"] == f"/problems/{kind}"
    assert ("Retry-After" in response.headers) == (status == 503)


async def test_a_client_that_goes_away_is_one_line_without_a_traceback(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation_id = await new_conversation(client)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def read(*arguments: Any, **options: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(Windows, "read", read)
    with capture_logs() as lines:
        _, writer = await asyncio.open_connection(client.host, client.port)
        path = f"/api/conversations/{conversation_id}/messages"
        writer.write(f"GET {path}?limit=7 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(10):
            await begun.wait()
            reset(writer)
            await ended.wait()
            while not lines:
                await asyncio.sleep(0)
    assert [line["event"] for line in lines] == ["request"]
    assert (lines[0]["status"], lines[0]["path"]) == (499, path)


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_one_line(client: Client) -> None:
    with capture_logs() as lines:
        _, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(
            b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100000\r\n\r\n{"
        )
        async with asyncio.timeout(10):
            await writer.drain()
            # The answer to another request shows that the first bytes of this one have been read.
            await client.get("/health/live")
            reset(writer)
            while not any(line.get("status") == 499 for line in lines):
                await asyncio.sleep(0)
    assert [line["event"] for line in lines] == ["request", "request"]


async def test_a_request_is_one_line_that_holds_no_query(client: Client) -> None:
    conversation_id = await new_conversation(client)
    with capture_logs() as lines:
        response = await client.get(f"/api/conversations/{conversation_id}/messages?limit=9")
        await response.read()
        while not lines:
            await asyncio.sleep(0)
    (line,) = lines
    assert (line["method"], line["status"], line["tenant"], line["peer"]) == ("GET", 200, "default", "127.0.0.1")
    assert line["route"] == "/api/conversations/{conversation_id}/messages"
    assert line["path"] == f"/api/conversations/{conversation_id}/messages"
    assert line["request_id"] == response.headers["X-Request-ID"]
    assert line["bytes"] > 0
    assert line["duration_ms"] >= 0
    assert "limit" not in str(line)


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends the connection as a client does that is killed."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
