"""Cursors go out and come back; nothing else does."""

import base64
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.cursor import decode_id, decode_time_and_id, encode_cursor
from storage.errors import InvalidCursor
from storage.records import new_id
from tests.storage.store import TENANT, Store

_AT = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
_ID = "0190a1b2-0000-7000-8000-000000000001"


def _encoded(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()


GARBAGE = [
    "",
    "=",
    "ä",
    "x" * 500,
    "abc",
    _encoded([]),
    _encoded("text"),
    _encoded([_ID, _ID]),
    _encoded([_ID, _AT]),
    _encoded(["2026-03-01T12:00:00", _ID]),  # of no zone
    _encoded(["0001-01-01T00:00:00+14:00", _ID]),  # before the first year, in UTC
    _encoded(["9999-12-31T23:59:59-14:00", _ID]),
    _encoded([_AT, "not an id"]),
    _encoded([1, 2, 3]),
]


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_what_goes_out_comes_back(at: datetime, identifier: object) -> None:
    assert decode_time_and_id(encode_cursor(at, str(identifier))) == (at, str(identifier))
    assert decode_id(encode_cursor(str(identifier))) == str(identifier)


@pytest.mark.parametrize("cursor", GARBAGE)
async def test_garbage_is_an_invalid_cursor_for_every_list(store: Store, cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        await store.conversations.page(TENANT, 10, cursor)
    with pytest.raises(InvalidCursor):
        await store.messages.newest(TENANT, 10, cursor)


async def test_a_cursor_of_another_list_is_invalid(store: Store) -> None:
    with pytest.raises(InvalidCursor):
        await store.messages.newest(TENANT, 10, encode_cursor(_AT, new_id()))
    with pytest.raises(InvalidCursor):
        await store.conversations.page(TENANT, 10, encode_cursor(new_id()))


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_nothing_else_ever_comes_back(text: str) -> None:
    for decode in (decode_id, decode_time_and_id):
        with pytest.raises(InvalidCursor):
            decode(text)
