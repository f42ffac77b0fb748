"""Frames of `text/event-stream` (WHATWG HTML, 9.2), and their framing for HTTP/1.1.

LF only: one widely used client splits on nothing else. `id` comes last: another records the id before it delivers the
data. A frame is written whole or not at all. JSON keeps every line break and control character of a text escaped, so no
text can end a field or begin an event.
"""

from __future__ import annotations

import random

import msgspec

PING = b": ping\n\n"
LAST_CHUNK = b"0\r\n\r\n"

_RETRY_MS = (1_000, 3_000)


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


def ready_frame(as_of: int, epoch: str) -> bytes:
    """Everything up to `as_of` is written. It alone of the control frames has an id: a reader cut here resumes here."""
    return b'event: ready\ndata: {"as_of":%d}\nid: %d@%b\n\n' % (as_of, as_of, epoch.encode())


def reset_frame(reason: str, as_of: int) -> bytes:
    """What the reader holds is of another timeline. No id: it would move the reader's cursor past real events."""
    return b"event: reset\ndata: %b\n\n" % msgspec.json.encode({"reason": reason, "as_of": as_of})


def drain_frame(reason: str) -> bytes:
    """The stream ends here, and goes on elsewhere or later."""
    return b"event: drain\ndata: %b\n\n" % msgspec.json.encode({"reason": reason})


def retry_frame() -> bytes:
    """How long to wait before reconnecting: jittered, so that a thousand readers do not come back at once."""
    return b"retry: %d\n\n" % random.randint(*_RETRY_MS)  # noqa: S311 (spreads load, protects nothing)


def chunk(data: bytes) -> bytes:
    """`data` as one chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
