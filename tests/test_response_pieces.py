"""Responses are split where HTTP/1.1 frames them, however their bytes arrive."""

import pytest

from tests.response_pieces import Kind, ResponsePieces

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"
SENT = (PAGE, b"hello", NOTHING, STREAM, b"2\r\nab\r\n", b"1\r\nc\r\n", b"0\r\n\r\n", PAGE, b"again")


@pytest.mark.parametrize("step", [1, 2, 7, 1_000])
def test_pieces_are_what_was_sent_whatever_a_read_brings(step: int) -> None:
    sent, reader = b"".join(SENT), ResponsePieces()
    pieces = [piece for start in range(0, len(sent), step) for piece in reader.feed(sent[start : start + step])]
    assert b"".join(piece.raw for piece in pieces) == sent
    assert [piece.body for piece in pieces if piece.kind is Kind.CHUNK] == [b"ab", b"c"]
    assert [piece.raw for piece in pieces if piece.stream] == [*SENT[3:7]]
    assert [piece.kind for piece in pieces if piece.kind is not Kind.BODY] == [
        *(Kind.HEAD, Kind.HEAD, Kind.HEAD, Kind.CHUNK, Kind.CHUNK, Kind.END, Kind.HEAD)
    ]


def test_a_body_without_a_length_goes_on_until_the_end() -> None:
    reader = ResponsePieces()
    pieces = [*reader.feed(b"HTTP/1.0 200 OK\r\n\r\nab"), *reader.feed(b"HTTP/1.1 200 OK\r\n\r\n")]
    assert [piece.kind for piece in pieces] == [Kind.HEAD, Kind.BODY, Kind.BODY]
