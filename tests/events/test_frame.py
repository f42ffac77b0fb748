"""Frames, as WHATWG HTML 9.2 reads them."""

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.frame import chunk, drain_frame, event_frame, read_frames, ready_frame, reset_frame, retry_frame
from events.vocabulary import encode_record, message_event
from storage.append import POSITION, SEQ, fill, fill_answer
from storage.records import EMPTY_ARRAY, EMPTY_OBJECT, Message, new_id, now

CONVERSATION = new_id()

# What would break out of its field if anything could: line ends, field names, separators, and what JSON must escape.
HOSTILE = st.lists(
    st.sampled_from(
        ["\r", "\n", "\x01", "\x02", "\u2028", "\u2029", "\u0085", "data:", "id: 1", "\n\n", '"', "\\", "é", "😀"]
    ),
    max_size=40,
).map("".join)


def _message(content: str) -> Message:
    at = now()
    return Message(
        new_id(), CONVERSATION, 5, "user", None, None, content, "complete", None, None, EMPTY_ARRAY, None, EMPTY_OBJECT,
        None, None, at, at,
    )  # fmt: skip


@given(HOSTILE)
def test_text_can_add_no_line_no_field_and_no_event(text: str) -> None:
    event = message_event("message.created", new_id(), encode_record(_message(text)))
    frame = event_frame("message.created", CONVERSATION, 9, event.payload, "k3").decode()
    lines = frame.split("\n")
    assert [line.partition(":")[0] for line in lines] == ["event", "data", "id", "", ""]
    assert "\r" not in frame
    data = json.loads(lines[1].removeprefix("data: "))
    assert data["message"]["content"] == text
    assert (data["conversation_id"], data["seq"]) == (CONVERSATION, 9)
    assert lines[2] == "id: 9@k3"


@given(HOSTILE)
def test_no_text_is_taken_for_the_place_of_a_number(text: str) -> None:
    encoded = encode_record(_message(text))
    assert SEQ not in encoded
    assert POSITION not in encoded
    assert fill(encoded, 1, 2) == encoded
    assert fill_answer(encoded, 1, 2) == encoded


def test_the_positions_of_an_answer_count_up() -> None:
    assert fill_answer(b'[{"p":\x02},{"p":\x02}] as of \x01', 40, 7) == b'[{"p":7},{"p":8}] as of 40'


def test_only_ready_of_the_control_frames_has_an_id() -> None:
    assert b"\nid: 8@k3\n" in ready_frame(8, "k3")
    assert b"id:" not in reset_frame("epoch", 8) + drain_frame("shutdown") + retry_frame(1)


def test_how_long_to_wait_differs_from_reader_to_reader() -> None:
    waits = {int(re.fullmatch(rb"retry: (\d+)\n\n", retry_frame(1))[1]) for _ in range(100)}  # type: ignore[index]
    assert len(waits) > 50
    assert all(1_000 <= wait <= 3_000 for wait in waits)


def test_a_chunk_says_its_length_in_hex() -> None:
    assert chunk(b"x" * 300) == b"12c\r\n" + b"x" * 300 + b"\r\n"


def test_joined_frames_are_taken_apart_again() -> None:
    text = "id: 9@x\n\nevent: y\r\n\u2028data: z"
    payloads = [b'{"message":{}}', b'{"text":%b}' % msgspec.json.encode(text)]
    frames = [event_frame("message.delta", "c", seq, payload, "k3") for seq, payload in enumerate(payloads, 7)]
    assert read_frames(b"".join(frames)) == [(7, "message.delta", frames[0]), (8, "message.delta", frames[1])]


@pytest.mark.parametrize(
    "data", [b"", b"knock", b"\n\n", b": ping\n\n", b"event: ready\ndata: {}\n\n", b"event: x\nid: 1@k"]
)
def test_what_is_no_event_is_none_of_them(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_frames(data)
