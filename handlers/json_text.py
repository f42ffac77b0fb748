"""Text that JSON can carry and a database cannot: NUL (none in PostgreSQL) and lone surrogates (none in UTF-8)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")

# A JSON document holds such text only behind one of these escapes: whatever does not match need not be looked at.
_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_SUSPECT_NUL = rb"\u0000"


def is_unstorable(text: str) -> bool:
    return _UNSTORABLE.search(text) is not None


def pointer(*steps: str | int) -> str:
    """A JSON pointer (RFC 6901). A surrogate in a key, which no answer could carry, is shown as U+FFFD."""
    tokens = (str(step).replace("~", "~0").replace("/", "~1") for step in steps)
    return _SURROGATE.sub("\ufffd", "".join(f"/{token}" for token in tokens))


def unstorable_text(body: bytes, *, decoded: bool) -> str | None:
    """The pointer to the first string or key in `body` that must not be, or None.

    When `decoded`, msgspec has read the body, and so met no lone surrogate: NUL alone is left to look for. Where it has
    not, its message is of no use: it calls a lone surrogate "truncated" or "malformed", so that the standard library
    looks again.
    """
    if _SUSPECT_NUL not in body if decoded else _SUSPECT.search(body) is None:
        return None
    try:
        # Numbers are of no interest here, and parsing one of 5,000 digits would raise.
        document = json.loads(body.decode(), parse_int=len, parse_float=len)
    except (ValueError, RecursionError):
        return None
    for steps, text in _texts(document):
        if is_unstorable(text):
            return pointer(*steps)
    return None


def _texts(document: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every string and key in the document, in its order, without recursion: it may be nested deeply."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while waiting:
        steps, value = waiting.pop()
        if isinstance(value, str):
            yield steps, value
        elif isinstance(value, list):
            waiting.extend(((*steps, index), item) for index, item in reversed(list(enumerate(value))))
        elif isinstance(value, dict):
            for key in value:
                yield (*steps, key), key
            waiting.extend(((*steps, key), item) for key, item in reversed(list(value.items())))
