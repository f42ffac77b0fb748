"""Writers that die: no reader is left with a message that streams for ever."""

import asyncio

import pytest

from tests.api import Client, new_conversation, problem
from tests.sse_reader import SseReader

_IDLE = 0.5


@pytest.fixture
def environment() -> dict[str, str]:
    return {"SWARM_STREAM_IDLE": str(_IDLE)}


async def test_what_a_dead_writer_left_fails_before_its_readers_and_what_a_live_one_writes_goes_on(
    client: Client,
) -> None:
    conversation_id = await new_conversation(client)
    posted = await client.post(
        f"/api/conversations/{conversation_id}/messages", json=[{"role": "user", "status": "streaming"}] * 2
    )
    dead, alive = [item["id"] for item in (await posted.json())["items"]]
    assert client.port is not None
    async with SseReader(client.host, client.port, f"/api/conversations/{conversation_id}/events?after=0") as reader:
        await client.post(f"/api/messages/{dead}/deltas", json={"offset": 0, "text": "and the"})
        length = 0

        async def write() -> None:
            nonlocal length
            while True:
                answer = await client.post(f"/api/messages/{alive}/deltas", json={"offset": length, "text": "x"})
                assert answer.status == 200
                length = (await answer.json())["length"]
                await asyncio.sleep(_IDLE / 10)

        writer = asyncio.create_task(write())
        failed = (await reader.until("message.failed"))[-1].json["message"]
        writer.cancel()
    assert (failed["id"], failed["content"], failed["length"]) == (dead, "and the", 7)
    late = await client.post(f"/api/messages/{dead}/deltas", json={"offset": 7, "text": " end"})
    document = await problem(late, 409, frozenset({"length", "message_status"}))
    assert (document["length"], document["message_status"]) == (7, "failed")
    assert (await (await client.get(f"/api/messages/{alive}")).json())["status"] == "streaming"
