"""Pages of the log as bytes: the database puts an event's frame together, and this process sees no event at all.

Ten thousand events that a reader has missed cost a fifth of the processor time here that their rows did
(docs/performance.md). How a frame looks is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from storage.statement import RawStatement


class FrameParts(Struct, frozen=True):
    """What stands around an event's kind, its seq, its payload without the opening brace, and its seq again."""

    before_kind: str
    before_seq: str
    before_payload: str
    after_payload: str
    end: str


class FramesPage(Struct, frozen=True):
    """`count` events of one conversation, joined, from seq `first` to `last`; both are 0 when there are none.

    Floor, head and epoch are of the same snapshot.
    """

    epoch: str
    floor: int
    head: int
    deleted: bool
    first: int
    last: int
    count: int
    data: bytes


# Cutting a character off a text makes PostgreSQL count all that follow, which takes as long as all the rest. So the
# brace stays behind a mark that no JSON text holds, and goes with it.
_MARK = "\x01"

_FRAME = "{p}6 || kind || {p}7 || seq || {p}8 || payload || {p}9 || seq || {p}10"
_SNAPSHOT = "SELECT t.epoch, c.floor_seq, c.last_seq, c.deleted_at"
_PAGE = "coalesce(p.first, 0), coalesce(p.last, 0), p.count, coalesce(p.data, '')"

FRAMES_PAGE = RawStatement(
    "log.frames",
    postgresql=(
        f"{_SNAPSHOT}, {_PAGE} FROM timeline t CROSS JOIN conversations c CROSS JOIN LATERAL ("  # noqa: S608 (constants)
        "SELECT min(seq) AS first, max(seq) AS last, count(*) AS count,"
        f" string_agg({_FRAME.format(p='$')}, '' ORDER BY seq) AS data FROM ("
        "SELECT seq, kind, payload, sum(octet_length(payload)) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING)"
        " - octet_length(payload) AS before FROM events WHERE conversation_id = $2 AND seq > $3 AND seq <= $4"
        ") AS e WHERE e.before < $5::bigint) AS p WHERE c.id = $2 AND c.tenant = $1"
    ),
    # In one row, since its driver lets go of the interpreter for each, and a busy loop would give it back late. An
    # aggregate takes the rows of a sorted subquery in their order; its own ORDER BY came with SQLite 3.44. A window
    # would copy the payloads that it is given, so it is only given their sizes.
    sqlite=(
        f"{_SNAPSHOT}, {_PAGE} FROM timeline t CROSS JOIN conversations c LEFT JOIN ("  # noqa: S608 (constants)
        "SELECT min(seq) AS first, max(seq) AS last, count(*) AS count,"
        f" group_concat({_FRAME.format(p='?')}, '') AS data FROM ("
        "SELECT seq, kind, payload FROM events WHERE conversation_id = ?2 AND seq > ?3 AND seq <= ("
        "SELECT max(seq) FROM ("
        "SELECT seq, sum(size) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) - size AS before FROM ("
        "SELECT seq, length(CAST(payload AS BLOB)) AS size FROM events"
        " WHERE conversation_id = ?2 AND seq > ?3 AND seq <= ?4)) WHERE before < ?5) ORDER BY seq)"
        ") AS p WHERE c.id = ?2 AND c.tenant = ?1"
    ),
    parameters=["tenant", "conversation_id", "after", "last", "budget", *FrameParts.__struct_fields__],
)


def frame_parameters(parts: FrameParts) -> dict[str, str]:
    """The statement's parameters that say how a frame looks."""
    return {
        "before_kind": parts.before_kind,
        "before_seq": parts.before_seq,
        "before_payload": _MARK,
        "after_payload": parts.after_payload,
        "end": parts.end,
    }


def frames_page(row: Sequence[Any], parts: FrameParts) -> FramesPage:
    """The row that `FRAMES_PAGE` gives."""
    epoch, floor, head, deleted_at, first, last, count, data = row
    framed = data.encode().replace(f"{_MARK}{{".encode(), parts.before_payload.encode())
    return FramesPage(epoch, floor, head, deleted_at is not None, first, last, count, framed)
