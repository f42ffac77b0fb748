"""Ids of events: `17@k3`, a seq and the epoch in which it was issued; of several conversations, a seq of each."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Sixteen digits hold every seq that a JSON reader can count to.
_SEQ = r"(?:0|[1-9][0-9]{0,15})"
_SHAPE = re.compile(rf"({_SEQ})@([a-z0-9]{{1,32}})")
_VECTOR_SHAPE = re.compile(rf"({_SEQ}(?:\.{_SEQ})*)@([a-z0-9]{{1,32}})")

# A seq that no log reaches: whoever resumes from it is told that what it holds is void.
NOWHERE = 2**53 - 1


@dataclass(frozen=True, slots=True)
class EventId:
    seq: int
    epoch: str

    def __str__(self) -> str:
        return f"{self.seq}@{self.epoch}"


def parse_event_id(text: str) -> EventId | None:
    """The id that `text` is, or None where it is none."""
    match = _SHAPE.fullmatch(text)
    return EventId(int(match[1]), match[2]) if match else None


def parse_vector_id(text: str, length: int) -> list[EventId] | None:
    """The ids that `text` stands for, `17.4.9@k3` for three, or None where it is no vector of `length`."""
    match = _VECTOR_SHAPE.fullmatch(text)
    if match is None:
        return None
    ids = [EventId(int(seq), match[2]) for seq in match[1].split(".")]
    return ids if len(ids) == length else None
