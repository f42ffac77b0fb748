"""JSON bodies, decoded straight into types: 400 for what cannot be parsed, 422 with a pointer for what is wrong."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from typing import Any, TypeVar

import msgspec

from handlers.json_text import pointer, unstorable_text
from handlers.problem import Fault, Problem, invalid, malformed

T = TypeVar("T")

_TOO_DEEP = "The JSON is nested too deeply."

# msgspec's messages: what is wrong, and where, as in "Expected `str`, got `int` - at `$[3].content`".
_LOCATED = re.compile(r"(?s)(?P<what>.*?)(?: - at `(?:key` in `)?\$(?P<path>[^`]*)`)?\Z")
_MISSING = re.compile(r"Object missing required field `([^`]*)`\Z")
_UNKNOWN = re.compile(r"(?s)Object contains unknown field `(.*)`\Z")
_CHOICE = re.compile(r"(?s)Invalid enum value .*\Z")  # what follows is the value: an error repeats names, and no values
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The value of `body`. Raises 400 or 422. No text in the value holds NUL or a lone surrogate."""
    try:
        value = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _problem(body, error) from None
    found = unstorable_text(body, decoded=True)
    if found is not None:
        raise _unstorable(found)
    return value


def _problem(body: bytes, error: Exception) -> Problem:
    if body.startswith(BOM_UTF8):
        return malformed("It begins with a byte order mark, which JSON has none of.")
    try:
        # A decoder stops at the first wrong value: what comes after it may not be JSON at all.
        body.decode()
        found = unstorable_text(body, decoded=False)
        if found is not None:
            return _unstorable(found)
        if isinstance(error, msgspec.ValidationError):
            msgspec.json.decode(body, type=msgspec.Raw)
    except UnicodeDecodeError as broken:
        return malformed(f"This is not UTF-8: the byte at {broken.start} cannot be there.")
    except RecursionError:
        return malformed(_TOO_DEEP)
    except msgspec.DecodeError as broken:
        return malformed(f"{broken}.")
    if isinstance(error, msgspec.ValidationError):
        return invalid(_fault(str(error)))
    return malformed(_TOO_DEEP if isinstance(error, RecursionError) else f"{error}.")


def _unstorable(where: str) -> Problem:
    return invalid(Fault("holds NUL or a lone surrogate, which no text may", pointer=where))


def _fault(message: str) -> Fault:
    located = _LOCATED.match(message)
    what, path = (located["what"], located["path"] or "") if located else (message, "")
    # `[...]` stands for a key that msgspec does not name: the pointer ends before it.
    known = path.partition("[...]")[0]
    steps: list[Any] = [int(index) if index else name for name, index in _STEP.findall(known)]
    missing = _MISSING.match(what)
    if missing:
        return Fault("is required", pointer=pointer(*steps, missing[1]))
    unknown = _UNKNOWN.match(what)
    if unknown:
        return Fault("is no field here", pointer=pointer(*steps, unknown[1][:200]))
    if _CHOICE.match(what):
        return Fault("is none of the values that can stand here", pointer=pointer(*steps))
    return Fault(what[:1].lower() + what[1:], pointer=pointer(*steps))
