"""Frames of `text/event-stream` (WHATWG HTML, 9.2), and their framing for HTTP/1.1.

LF only: one widely used client splits on nothing else. `id` comes last: another records the id before it delivers the
data. A frame is written whole or not at all. JSON keeps every line break and control character of a text escaped, so no
text can end a field or begin an event.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from storage.log_frames import FrameParts

PING = b": ping\n\n"
LAST_CHUNK = b"0\r\n\r\n"


def event_frame(kind: str, conversation_id: str, seq: int, payload: bytes, epoch: str) -> bytes:
    """An event's bytes, made once for all who read it. `payload` is a JSON object with at least one member."""
    return b'event: %b\ndata: {"conversation_id":"%b","seq":%d,%b\nid: %d@%b\n\n' % (
        kind.encode(),
        conversation_id.encode(),
        seq,
        payload[1:],
        seq,
        epoch.encode(),
    )


def frame_parts(conversation_id: str, epoch: str) -> FrameParts:
    """What `event_frame` puts around an event, for the database to do the same."""
    return FrameParts(
        before_kind="event: ",
        before_seq=f'\ndata: {{"conversation_id":"{conversation_id}","seq":',
        before_payload=",",
        after_payload="\nid: ",
        end=f"@{epoch}\n\n",
    )


def split_frames(data: bytes) -> list[bytes]:
    """Joined frames, each by itself."""
    return [part + b"\n\n" for part in data.split(b"\n\n")[:-1]]


def read_frames(data: bytes) -> list[tuple[int, str, bytes]]:
    """Takes joined event frames apart: `(seq, kind, frame)` of each. Raises `ValueError` for anything else."""
    parts = data.split(b"\n\n")
    if parts.pop() or not parts:
        raise ValueError("no whole frames")
    found = []
    for part in parts:
        kind, _, fields = part.partition(b"\n")
        name, _, value = fields[fields.rindex(b"\n") + 1 :].partition(b": ")
        if not kind.startswith(b"event: ") or name != b"id":
            raise ValueError("no event's frame")
        found.append((int(value[: value.index(b"@")]), kind[7:].decode(), part + b"\n\n"))
    return found


def unnumbered(frames: Iterable[bytes]) -> bytes:
    """The same frames without their ids, as readers of several conversations get them."""
    # The id is the last line, and no data can hold a line break: the last match is the field itself.
    return b"".join(frame[: frame.rindex(b"\nid: ") + 1] + b"\n" for frame in frames)


# A reader of several conversations can resume from its cursors alone: one that is cut after every few kilobytes must
# meet some.
PIECE_BYTES = 8 * 1024


def pieces(frames: Sequence[bytes], position: int) -> list[tuple[bytes, int]]:
    """Frames of successive events after `position`, without their ids, in small pieces.

    Each with the seq that it ends with.
    """
    found: list[tuple[bytes, int]] = []
    start = size = 0
    for stop, frame in enumerate(frames, 1):
        size += len(frame)
        if size >= PIECE_BYTES or stop == len(frames):
            found.append((unnumbered(frames[start:stop]), position + stop))
            start, size = stop, 0
    return found


def cursor_frame(vector: Sequence[int], epoch: str) -> bytes:
    """Where a reader of several conversations stands, in the order in which it asked for them."""
    return b"event: cursor\ndata: {}\nid: %b\n\n" % _vector_id(vector, epoch)


def ready_frame(as_of: int, epoch: str) -> bytes:
    """Everything up to `as_of` is written. It alone of the control frames has an id: a reader cut here resumes here."""
    return b'event: ready\ndata: {"as_of":%d}\nid: %d@%b\n\n' % (as_of, as_of, epoch.encode())


def many_ready_frame(as_of: Mapping[str, int], vector: Sequence[int], epoch: str) -> bytes:
    """The same for several conversations, each with its seq."""
    return b"event: ready\ndata: %b\nid: %b\n\n" % (msgspec.json.encode({"as_of": as_of}), _vector_id(vector, epoch))


def feed_ready_frame() -> bytes:
    """The feed has begun: what a reader reads of its lists from now on is kept up to date. The feed has no ids."""
    return b'event: ready\ndata: {"as_of":{}}\n\n'


def reset_frame(reason: str, as_of: int) -> bytes:
    """What the reader holds is of another timeline. No id: it would move the reader's cursor past real events."""
    return b"event: reset\ndata: %b\n\n" % msgspec.json.encode({"reason": reason, "as_of": as_of})


def many_reset_frame(reason: str, as_of: Mapping[str, int]) -> bytes:
    """The same for several conversations, of which only those that are named are concerned."""
    return b"event: reset\ndata: %b\n\n" % msgspec.json.encode({"reason": reason, "as_of": as_of})


def gone_frame(conversation_id: str) -> bytes:
    """One of several conversations is not there: deleted, another tenant's, or never made, all alike."""
    return b"event: conversation.gone\ndata: %b\n\n" % msgspec.json.encode({"conversation_id": conversation_id})


def feed_frame(kind: str, payload: bytes) -> bytes:
    """A frame of the feed, which has neither seqs nor ids. `payload` is a JSON object."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), payload)


def drain_frame(reason: str) -> bytes:
    """The stream ends here, and goes on elsewhere or later."""
    return b"event: drain\ndata: %b\n\n" % msgspec.json.encode({"reason": reason})


def retry_frame(least: float) -> bytes:
    """How long to wait before reconnecting: from `least` seconds to three times that.

    Jittered, so that a thousand readers do not come back at once.
    """
    milliseconds = int(least * 1_000)
    return b"retry: %d\n\n" % random.randint(milliseconds, 3 * milliseconds)  # noqa: S311 (spreads load, protects nothing)


def chunk(data: bytes) -> bytes:
    """`data` as one chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _vector_id(vector: Sequence[int], epoch: str) -> bytes:
    return b"%b@%b" % (".".join(map(str, vector)).encode(), epoch.encode())
