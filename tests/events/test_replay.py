"""Catching up from the database, where what is lacked is not there any more."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from handlers.resources import DATABASE, HUB, LOG
from storage.retention import Retention
from tests.api import Client, new_conversation, post_messages
from tests.events.test_hub import Reader, _until, _watch


@pytest.mark.parametrize("page_events", [500, 2])
async def test_of_a_deleted_conversation_whose_state_is_gone_a_reader_is_told_the_end_alone(
    client: Client, page_events: int
) -> None:
    """The events above the floor continue what it was never given: a text would have a gap."""
    conversation_id = await new_conversation(client)
    path = f"/api/conversations/{conversation_id}/messages"
    message = await (await client.post(path, json={"role": "user", "status": "streaming"})).json()
    for offset in range(6):
        delta = {"offset": offset, "text": str(offset)}
        assert (await client.post(f"/api/messages/{message['id']}/deltas", json=delta)).status == 200
    assert (await client.post(f"/api/messages/{message['id']}/finish", json={"status": "complete"})).status == 200
    await Retention(client.app[DATABASE]).retain(before=None, keep=4, conversation_id=conversation_id)
    hub = client.app[HUB]
    hub._replay._config = replace(hub.config, page_events=page_events)
    reader = Reader(hub, await _watch(hub, conversation_id), 1)
    channels = hub.channels.copy()
    hub.channels.clear()  # as when another process deletes it: no commit tells this one
    await client.app[LOG].delete_conversation("default", conversation_id, key=None)
    hub.channels.update(channels)
    hub.attach(reader.stream)
    await _until(lambda: reader.closing)
    assert [event for event in reader.events if event[0] != "ready"] == [("conversation.deleted", 9)]


async def test_a_reader_that_catches_up_while_the_log_has_gone_back_is_reset_not_cut_off(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup was restored, and `new-epoch` has not been run yet: the reader asks for what is not there any more."""
    conversation_id = await new_conversation(client)
    await post_messages(client, conversation_id, 6)
    hub = client.app[HUB]
    channel = await _watch(hub, conversation_id)
    compared, pages = asyncio.Event(), 0
    moved, page = hub._log.moved, hub._log.page

    async def late_moved(*arguments: Any) -> Any:
        await compared.wait()
        return await moved(*arguments)

    async def counted_page(*arguments: Any, **named: Any) -> Any:
        nonlocal pages
        pages += 1
        return await page(*arguments, **named)

    monkeypatch.setattr(hub._log, "moved", late_moved)
    monkeypatch.setattr(hub._log, "page", counted_page)
    async with client.app[DATABASE].transaction("test.restore") as connection:
        for statement in (
            "DELETE FROM events WHERE seq > 2",
            "DELETE FROM messages WHERE position > 2",
            "UPDATE conversations SET last_seq = 2, message_count = 2",
        ):
            await connection.execute(text(statement))
    reader = Reader(hub, channel, 3)
    hub.attach(reader.stream)
    await _until(lambda: pages > 1)
    assert not reader.closing
    compared.set()
    await _until(lambda: ("ready", 2) in reader.events)
    assert reader.events == [("reset", 2), ("ready", 2)]
    assert not reader.closing
