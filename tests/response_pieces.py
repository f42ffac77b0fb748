"""What a server sends on one connection, in the pieces that HTTP/1.1 frames it in (RFC 9112, 6 and 7)."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a piece is."""

    HEAD = "the head of a response"
    BODY = "bytes of a body that is not chunked"
    CHUNK = "a chunk, whole"
    END = "the last chunk, which is empty"


@dataclass(frozen=True)
class Piece:
    """Some bytes as they were sent; for a chunk `raw[start:start + len(body)]` is its body."""

    kind: Kind
    raw: bytes
    stream: bool
    """Whether it belongs to a stream of events that goes on until somebody ends it."""
    body: bytes = b""
    start: int = 0


class ResponsePieces:
    """Splits what is fed to it. A piece comes out when it is whole; those of bodies without chunks, as they come."""

    def __init__(self) -> None:
        self._buffer = b""
        self._chunked = False
        self._stream = False
        self._left: int | None = 0
        """How many bytes the body still has, None: all there are until the connection ends."""

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Yields what is whole now; together all pieces are what was fed, byte for byte."""
        self._buffer += data
        while self._buffer and (piece := self._next()) is not None:
            self._buffer = self._buffer[len(piece.raw) :]
            yield piece

    def _next(self) -> Piece | None:
        if self._chunked:
            return self._chunk()
        if self._left != 0:
            raw = self._buffer[: self._left]
            if self._left is not None:
                self._left -= len(raw)
            return Piece(Kind.BODY, raw, self._stream)
        head, blank, _ = self._buffer.partition(b"\r\n\r\n")
        return self._head(head + blank) if blank else None

    def _head(self, raw: bytes) -> Piece:
        status, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._chunked = fields.get("transfer-encoding") == "chunked"
        self._stream = self._chunked and fields.get("content-type", "").startswith("text/event-stream")
        bodiless = status.split()[1] in {"204", "304"}
        length = fields.get("content-length")
        self._left = 0 if bodiless or self._chunked else None if length is None else int(length)
        return Piece(Kind.HEAD, raw, self._stream)

    def _chunk(self) -> Piece | None:
        size, line_end, _ = self._buffer.partition(b"\r\n")
        if not line_end:
            return None
        start, length = len(size) + 2, int(size, 16)
        raw = self._buffer[: start + length + 2]
        if len(raw) < start + length + 2:
            return None
        if length == 0:
            self._chunked = False
            return Piece(Kind.END, raw, self._stream)
        return Piece(Kind.CHUNK, raw, self._stream, raw[start : start + length], start)
