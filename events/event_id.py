"""Ids of events: `17@k3`, a seq and the epoch in which it was issued."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Sixteen digits hold every seq that a JSON reader can count to.
_SHAPE = re.compile(r"(0|[1-9][0-9]{0,15})@([a-z0-9]{1,32})")


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
