"""Cursors of lists: where the next page begins, opaque to whoever carries them."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

import msgspec

from storage.errors import InvalidCursor

T = TypeVar("T")

_SHAPE = re.compile(r"[A-Za-z0-9_-]{1,200}")


def encode_cursor(*values: str | datetime) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(values)).rstrip(b"=").decode()


def decode_id(cursor: str) -> str:
    """The id in a cursor of one id. Raises `InvalidCursor`."""
    return str(_decode(cursor, tuple[UUID])[0])


def decode_time_and_id(cursor: str) -> tuple[datetime, str]:
    """The time and the id in a cursor of both. Raises `InvalidCursor`."""
    at, identifier = _decode(cursor, tuple[datetime, UUID])
    if at.tzinfo is None:
        raise InvalidCursor("not a cursor of this list")
    try:
        return at.astimezone(UTC), str(identifier)
    except OverflowError:  # beyond the years that there are
        raise InvalidCursor("not a cursor of this list") from None


def _decode(cursor: str, shape: type[T]) -> T:
    try:
        if not _SHAPE.fullmatch(cursor):
            raise ValueError("not base64url")
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=shape)
    except (ValueError, binascii.Error):
        raise InvalidCursor("not a cursor of this list") from None
