"""A reader of `text/event-stream` that keeps what it gets, byte for byte, and judges nothing."""

import asyncio
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

_WAIT = 20.0  # seconds for anything that is to come


@dataclass(frozen=True)
class Frame:
    """What stood between two blank lines."""

    lines: tuple[str, ...]
    event: str = ""
    data: str = ""
    id: str | None = None
    retry: int | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class StreamEnded(Exception):
    """The server ended the stream, properly or not (`clean`)."""

    def __init__(self, clean: bool) -> None:
        super().__init__("ended" if clean else "broken off")
        self.clean = clean


@dataclass
class SseReader:
    """One connection to one stream. Every wait is bounded."""

    host: str
    port: int
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    version: str = "1.1"
    status: int = 0
    answered: dict[str, str] = field(default_factory=dict)
    receive_buffer: int | None = None
    """Bytes that are taken in ahead of the reader, by its kernel and here: about twice this many each."""
    _buffer: bytes = b""
    _left: int = 0
    """Bytes of the chunk that has begun."""

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(_WAIT):
            await self.open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    async def open(self) -> None:
        """Sends the request and reads the response's head."""
        self._source, self._sink = await self._connect()
        lines = [f"GET {self.target} HTTP/{self.version}", f"Host: {self.host}", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        self._sink.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = (await self._source.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(head[0].split()[1])
        self.answered = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        self._chunked = self.answered.get("transfer-encoding") == "chunked"
        self._length = int(self.answered["content-length"]) if "content-length" in self.answered else None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.receive_buffer is None:
            return await asyncio.open_connection(self.host, self.port)
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        await asyncio.get_running_loop().sock_connect(connection, (self.host, self.port))
        return await asyncio.open_connection(sock=connection, limit=self.receive_buffer)

    def close(self) -> None:
        """Goes away without a word."""
        self._sink.transport.abort()

    async def frame(self, timeout: float = _WAIT) -> Frame:
        """The next frame, comments too. Raises `StreamEnded`."""
        async with asyncio.timeout(timeout):
            while b"\n\n" not in self._buffer:
                self._buffer += await self._body()
        text, _, self._buffer = self._buffer.partition(b"\n\n")
        assert b"\r" not in text, "LF only"
        return _parsed(text.decode())

    async def frames(self, timeout: float = _WAIT) -> list[Frame]:
        """All frames that have come, one at least, comments too. Raises `StreamEnded`."""
        first = await self.frame(timeout)
        *texts, self._buffer = self._buffer.split(b"\n\n")
        assert all(b"\r" not in text for text in texts), "LF only"
        return [first, *(_parsed(text.decode()) for text in texts)]

    async def event(self, timeout: float = _WAIT) -> Frame:
        """The next frame that a browser would dispatch. Pings do not prolong the wait."""
        async with asyncio.timeout(timeout):
            while not (frame := await self.frame(timeout)).data:
                pass
        return frame

    async def until(self, event: str, timeout: float = _WAIT) -> list[Frame]:
        """The events up to one of that kind, it among them."""
        frames = [await self.event(timeout)]
        while frames[-1].event != event:
            frames.append(await self.event(timeout))
        return frames

    async def read_chunk(self) -> bytes:
        """The next piece of the body as the server framed it."""
        async with asyncio.timeout(_WAIT):
            return await self._body(whole=True)

    async def _body(self, *, whole: bool = False) -> bytes:
        """What has come of the body; of one in chunks nothing beyond the chunk that has begun, or all of it."""
        try:
            if not self._chunked:
                if self._length == 0:
                    raise StreamEnded(clean=True)
                data = await self._source.read(65_536)
                if not data:
                    raise StreamEnded(clean=self._length is None)
                if self._length is not None:
                    self._length -= len(data)
                return data
            if not self._left:
                size = await self._source.readuntil(b"\r\n")
                if size == b"\r\n":  # the end of the chunk before
                    size = await self._source.readuntil(b"\r\n")
                self._left = int(size[:-2], 16)
                if not self._left:
                    await self._source.readexactly(2)
                    raise StreamEnded(clean=True)
            data = await (self._source.readexactly(self._left) if whole else self._source.read(self._left))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise StreamEnded(clean=False) from None
        if not data:
            raise StreamEnded(clean=False)
        self._left -= len(data)
        return data


def _parsed(text: str) -> Frame:
    values: dict[str, list[str]] = {}
    for line in text.split("\n"):
        name, _, value = line.partition(":")
        values.setdefault(name, []).append(value.removeprefix(" "))
    ids, retries = values.get("id"), values.get("retry")
    return Frame(
        tuple(text.split("\n")),
        values.get("event", [""])[-1],
        "\n".join(values.get("data", [])),
        ids[-1] if ids else None,
        int(retries[-1]) if retries else None,
    )
