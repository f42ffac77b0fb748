"""Where a stream begins when another process has been quicker than this one's hub."""

from handlers.resources import HUB, LOG
from tests.api import Client, new_conversation, post_messages
from tests.sse_reader import SseReader


async def _deleted_elsewhere(client: Client, conversation_id: str) -> str:
    """Deletes it so that the hub, which knows it, has not heard of that; returns the id of the last event."""
    hub = client.app[HUB]
    [channel] = (await hub.watch("default", [conversation_id])).values()
    channels = hub.channels.copy()
    hub.channels.clear()
    await client.app[LOG].delete_conversation("default", conversation_id, key=None)
    hub.channels.update(channels)
    return f"{channel.last_seq + 1}@{hub.epoch}"


async def test_who_has_seen_a_deletion_that_the_hub_has_not_heard_of_gets_404_and_no_reset(client: Client) -> None:
    conversation_id = await new_conversation(client)
    await post_messages(client, conversation_id, 2)
    last_id = await _deleted_elsewhere(client, conversation_id)
    assert client.port is not None
    target, headers = f"/api/conversations/{conversation_id}/events", {"Last-Event-ID": last_id}
    async with SseReader(client.host, client.port, target, headers) as reader:
        assert reader.status == 404


async def test_the_same_on_a_stream_of_several_is_gone_and_its_place_never_goes_back(client: Client) -> None:
    here, deleted = await new_conversation(client), await new_conversation(client)
    await post_messages(client, deleted, 2)
    last_id = await _deleted_elsewhere(client, deleted)
    seq, _, epoch = last_id.partition("@")
    assert client.port is not None
    target, headers = f"/api/events?conversations={here},{deleted}", {"Last-Event-ID": f"0.{seq}@{epoch}"}
    async with SseReader(client.host, client.port, target, headers) as reader:
        frames = await reader.until("ready")
    assert [frame.event for frame in frames] == ["conversation.gone", "ready"]
    assert frames[0].json == {"conversation_id": deleted}
    assert frames[1].id == f"0.{seq}@{epoch}"
