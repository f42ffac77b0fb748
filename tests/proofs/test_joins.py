"""History joins the stream without a seam (P4), under concurrent writers.

Goes red when the stream replays first and subscribes afterwards: what is committed in between is then missing.
"""

import asyncio
import random
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from tests import proof
from tests.sse_reader import Frame, SseReader

WRITERS = 4
READERS = 8  # at once
FOLLOWED = 12  # events that each join follows past its window

Client = TestClient[Any, Any]


async def _write(client: Client, path: str, stop: asyncio.Event) -> int:
    posted = 0
    while not stop.is_set():
        size = random.choice([1, 1, 1, 3, 10])
        body = [{"role": "user", "content": f"{posted} {'.' * random.randint(0, 300)}"} for _ in range(size)]
        answer = await client.post(path, json=body if size > 1 else body[0])
        assert answer.status == 201, await answer.text()
        posted += size
    return posted


async def _join(client: Client, conversation_id: str) -> None:
    """A window anywhere, and the stream from the seq that it is true as of."""
    base = f"/api/conversations/{conversation_id}"
    limit = random.choice([1, 10, 50, 500])
    anchor = random.choice(["", f"&from={random.randint(1, 50)}", f"&before={random.randint(2, 500)}", "&around=7"])
    answer = await client.get(f"{base}/messages?limit={limit}{anchor}")
    assert answer.status == 200
    window = await answer.json()
    as_of, total = window["as_of"], window["total"]
    # Whichever way a reader says where it is.
    way: dict[str, Any] = random.choice([{"after": str(as_of)}, {"after": "id"}, {"header": True}])
    target, headers = f"{base}/events", {}
    epoch = (await (await client.get("/health")).json())["epoch"]
    if "header" in way:
        headers["Last-Event-ID"] = f"{as_of}@{epoch}"
        target += "?after=0"  # the header wins
    else:
        target += f"?after={as_of if way['after'] != 'id' else f'{as_of}@{epoch}'}"
    assert client.port is not None
    async with SseReader(client.host, client.port, target, headers) as reader:
        assert reader.status == 200
        followed = 0
        ready: Frame | None = None
        while followed < FOLLOWED or ready is None:
            frame = await reader.event()
            if frame.event == "ready":
                ready = frame
                assert frame.json["as_of"] == as_of + followed, "ready comes when everything up to it is written"
                assert frame.id == f"{as_of + followed}@{epoch}"
                continue
            followed += 1
            data = frame.json
            assert data["seq"] == as_of + followed, "no gap, no repeat"
            assert frame.id == f"{data['seq']}@{epoch}"
            assert frame.event == "message.created"
            assert data["message"]["position"] == total + followed, "the window ended where the stream begins"


@pytest.mark.proof
@pytest.mark.timeout(1_800)
async def test_a_window_and_the_stream_after_it_have_no_seam_while_four_writers_append(
    client: Client, database_url: str
) -> None:
    made = await client.post("/api/conversations", json={})
    conversation_id = (await made.json())["id"]
    path = f"/api/conversations/{conversation_id}/messages"
    stop = asyncio.Event()
    joins = proof.count(1_000, 10_000)
    left = iter(range(joins))

    async def read() -> None:
        for _ in left:
            await _join(client, conversation_id)

    async with asyncio.TaskGroup() as tasks:
        writers = [tasks.create_task(_write(client, path, stop)) for _ in range(WRITERS)]
        readers = [tasks.create_task(read()) for _ in range(READERS)]
        await asyncio.wait(readers, return_when=asyncio.FIRST_EXCEPTION)
        stop.set()
    posted = sum(writer.result() for writer in writers)
    window = await (await client.get(f"{path}?limit=1")).json()
    assert window["total"] == window["as_of"] == posted
    database = database_url.partition(":")[0]
    proof.record("joins of a window and a stream, 4 writers", database, f"{joins} joins", f"{posted} messages, no seam")
