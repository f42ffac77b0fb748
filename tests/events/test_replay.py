"""Catching up from the database, where what is lacked is not there any more."""

from dataclasses import replace

import pytest

from handlers.resources import DATABASE, HUB, LOG
from storage.retention import Retention
from tests.api import Client, new_conversation
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
