"""Free-form JSON that clients leave with us: checked, and then kept as compact text that nothing parses again."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from handlers.json_text import pointer
from handlers.problem import Fault, invalid
from storage.records import EMPTY_OBJECT

# Every reader of a window gets the metadata of all its messages: 500 × 16 KiB is what a page may carry of it at most.
METADATA_BYTES = 16 * 1024
# A tool's arguments and results are data, not annotations; whole files belong elsewhere.
TOOL_CALLS_BYTES = 256 * 1024
# Readers in many languages parse by recursion; none of them should be brought down by what another client posted.
DEPTH = 32

_LEAST, _MOST = -(2**63), 2**64 - 1


def compact(value: Any, where: str, most: int) -> Raw:
    """`value` as compact JSON of at most `most` bytes, at most `DEPTH` deep, its integers within 64 bits.

    `where` is its pointer. Raises 422. (Numbers beyond a double are refused while they are decoded.)
    """
    if value == {}:
        return EMPTY_OBJECT
    try:
        encoded = msgspec.json.encode(value)
        plain = msgspec.to_builtins(value)
    except RecursionError:
        raise invalid(_too_deep(where)) from None
    if len(encoded) > most:
        raise invalid(Fault(f"is {len(encoded)} bytes of JSON; at most {most} are accepted", pointer=where))
    _check(plain, where, 1)
    return Raw(encoded)


def _check(value: Any, where: str, depth: int) -> None:
    if isinstance(value, int) and not _LEAST <= value <= _MOST:
        raise invalid(Fault("is beyond 64 bits, which many JSON readers cannot hold", pointer=where))
    if isinstance(value, dict | list):
        if depth > DEPTH:
            raise invalid(_too_deep(where))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for step, item in items:
            _check(item, where + pointer(step), depth + 1)


def _too_deep(where: str) -> Fault:
    return Fault(f"is nested more than {DEPTH} deep", pointer=where)
