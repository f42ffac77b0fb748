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
_LEAST, _MOST = -(2**63), 2**64 - 1

_encode = msgspec.json.Encoder().encode


def compact(value: Any, where: str, most: int, depth: int) -> Raw:
    """`value` as compact JSON of at most `most` bytes, at most `depth` deep, its integers within 64 bits.

    `where` is its pointer. Raises 422. (Numbers beyond a double are refused while they are decoded.)
    """
    if value == {}:
        return EMPTY_OBJECT
    try:
        encoded = _encode(value)
        # What was decoded without a type is plain already.
        plain = value if isinstance(value, dict) else msgspec.to_builtins(value)
    except RecursionError:
        raise invalid(_too_deep(where, depth)) from None
    if len(encoded) > most:
        raise invalid(Fault(f"is {len(encoded)} bytes of JSON; at most {most} are accepted", pointer=where))
    _check(plain, where, (), depth)
    return Raw(encoded)


def _check(value: dict[str, Any] | list[Any], where: str, steps: tuple[str | int, ...], depth: int) -> None:
    if len(steps) >= depth:
        raise invalid(_too_deep(where + pointer(*steps), depth))
    for step, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, int):
            if not _LEAST <= item <= _MOST:
                place = where + pointer(*steps, step)
                raise invalid(Fault("is beyond 64 bits, which many JSON readers cannot hold", pointer=place))
        elif isinstance(item, dict | list):
            _check(item, where, (*steps, step), depth)


def _too_deep(where: str, depth: int) -> Fault:
    return Fault(f"is nested more than {depth} deep", pointer=where)
