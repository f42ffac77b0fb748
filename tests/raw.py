"""Requests as bytes, and answers with their heads as they came: what a client library would tidy up is seen."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.api import Client

_TIMEOUT = 20.0


@dataclass(frozen=True)
class Answer:
    status: int
    fields: list[tuple[str, str]]
    """In the order they came, names in lower case."""
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field == name.lower()]

    def one(self, name: str) -> str | None:
        """The field's value, or None without it. It must not come twice."""
        values = self.all(name)
        assert len(values) < 2, (name, values)
        return values[0] if values else None


async def ask(client: Client, line: str, *fields: str, body: bytes = b"", host: str | None = "localhost") -> Answer:
    """What the server says to `GET /path` with these fields, up to the end of the connection; a stream's head alone."""
    hosts = () if host is None else (f"Host: {host}",)
    lengths = (f"Content-Length: {len(body)}",) if body else ()
    head = "\r\n".join((f"{line} HTTP/1.1", *hosts, *fields, *lengths, "Connection: close", "", ""))
    return await send(client, head.encode() + body)


async def send(client: Client, request: bytes) -> Answer:
    async with asyncio.timeout(_TIMEOUT):
        reader, writer = await asyncio.open_connection(client.host, client.port)
        try:
            writer.write(request)
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip("\r\n").split("\r\n")
            fields = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
            stream = ("content-type", "text/event-stream") in fields
            body = b"" if stream else await reader.read()
        finally:
            writer.close()
    return Answer(int(first.split()[1]), fields, body)
