"""Rows on their way to the wire."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from sqlalchemy import select

from storage.rows import MESSAGE_COLUMNS, WINDOW_COLUMNS, encoded_messages, message, to_time
from storage.statement import Statement
from storage.tables import messages
from tests.storage.store import Store
from tests.storage.streaming import stream

_WHOLE, _OF_A_WINDOW = (
    Statement("test.messages", select(*columns).order_by(messages.c.position))
    for columns in (MESSAGE_COLUMNS, WINDOW_COLUMNS)
)


@pytest.mark.parametrize("microsecond", [0, 1, 40, 100_000, 999_999])
async def test_rows_are_encoded_as_the_messages_that_they_are(store: Store, microsecond: int) -> None:
    conversation = await store.conversation()
    [first, *_] = await store.post_many(conversation, ['😀 "quoted" \x01', "", "third"])
    await store.post(conversation, "of an agent", agent_id="general_01", reply_to=first["id"], model="some/model")
    await (await stream(store, conversation)).add("so far")
    at = to_time(datetime(2026, 2, 3, 4, 5, 6, microsecond, tzinfo=UTC), store.database.dialect)
    await store.execute(
        'UPDATE messages SET updated_at = :at, usage = \'{"tokens": 1}\', tool_calls = \'[{"id": "1"}]\','
        " metadata = '{\"a\":  [null]}' WHERE position > 1",
        at=at,
    )
    rows = await store.database.fetch(_WHOLE)
    assert len(rows) == 5
    assert rows[0][-1] == rows[0][-2]
    encoded = encoded_messages(conversation, await store.database.fetch(_OF_A_WINDOW))
    assert encoded == msgspec.json.encode([message(row) for row in rows])
