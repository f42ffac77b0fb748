"""Writers that remember what was acknowledged, whatever happens to their requests."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import aiohttp

_AWAY = (aiohttp.ClientError, ConnectionError, TimeoutError, asyncio.IncompleteReadError)
_PATIENCE = 90.0  # seconds that one write may be tried again
_REQUEST = 30.0


class Writer:
    """Posts one message after another, each under a key, and the same again until it is acknowledged."""

    def __init__(self, session: aiohttp.ClientSession, conversation_ids: list[str], *, pause: float = 0.0) -> None:
        self.acknowledged: dict[str, tuple[str, str]] = {}  # by message id: conversation and text
        self.faults: list[str] = []
        self.delays: list[float] = []  # seconds of each request that was acknowledged
        self.tried_again = 0
        self.most_tries = 0  # of one write
        self.unavailable = 0  # how often the answer was a 503 with Retry-After
        self.slowest = 0.0  # seconds of any request, whatever its answer
        self.stop = asyncio.Event()
        self._session = session
        self._conversation_ids = conversation_ids
        self._pause = pause
        self._name = uuid.uuid4().hex[:8]

    async def run(self) -> None:
        """Until `stop`."""
        count = 0
        due = time.perf_counter()
        while not self.stop.is_set():
            conversation_id = self._conversation_ids[count % len(self._conversation_ids)]
            count += 1
            await self._write(conversation_id, f"{self._name} {count} " + "." * 180)
            # By the clock, whatever a write has taken; but what a fault has held up is not made up for.
            due = max(due + self._pause, time.perf_counter() - self._pause)
            if self._pause:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def _write(self, conversation_id: str, text: str) -> None:
        until = time.perf_counter() + _PATIENCE
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        body = {"role": "user", "content": text}
        tries = 0
        while time.perf_counter() < until:
            tries += 1
            self.most_tries = max(self.most_tries, tries)
            begun = time.perf_counter()
            try:
                async with asyncio.timeout(_REQUEST):
                    async with self._session.post(
                        f"/api/conversations/{conversation_id}/messages", json=body, headers=headers
                    ) as answer:
                        if answer.status == 201:
                            made: dict[str, Any] = await answer.json()
                            self.delays.append(time.perf_counter() - begun)
                            self.acknowledged[made["id"]] = (conversation_id, text)
                            return
                        await self._refused(answer)
            except _AWAY:
                pass
            finally:
                self.slowest = max(self.slowest, time.perf_counter() - begun)
            self.tried_again += 1
            await asyncio.sleep(0.05)
        self.faults.append(f"never acknowledged: {text[:20]}")

    async def _refused(self, answer: aiohttp.ClientResponse) -> None:
        said = await answer.text()
        # A proxy whose servers are away says it in its own words.
        if answer.status in {502, 504} or (answer.status == 503 and answer.content_type == "text/html"):
            return
        if (
            answer.status != 503
            or answer.content_type != "application/problem+json"
            or "Retry-After" not in answer.headers
        ):
            self.faults.append(f"{answer.status} {said[:200]}")
        else:
            self.unavailable += 1


async def stored(session: aiohttp.ClientSession, conversation_id: str) -> tuple[dict[str, str], int]:
    """The text of each message by its id, and the log's head. Positions have no holes."""
    found: dict[str, str] = {}
    positions: list[int] = []
    after: int | None = 0
    head = 0
    while after is not None:
        async with session.get(f"/api/conversations/{conversation_id}/messages?after={after}&limit=500") as answer:
            assert answer.status == 200, await answer.text()
            window = await answer.json()
        for item in window["items"]:
            found[item["id"]] = item["content"]
            positions.append(item["position"])
        after, head = window["next"], window["as_of"]
    assert positions == list(range(1, len(positions) + 1))
    return found, head


async def check_acknowledged(
    session: aiohttp.ClientSession, writers: list[Writer], ids: list[str], *, unique: bool = True
) -> dict[str, int]:
    """Each acknowledged message is there, and none twice. Returns each conversation's head."""
    faults = [fault for writer in writers for fault in writer.faults]
    assert not faults, faults[:10]
    heads: dict[str, int] = {}
    for conversation_id in ids:
        messages, heads[conversation_id] = await stored(session, conversation_id)
        for writer in writers:
            for message_id, (where, text) in writer.acknowledged.items():
                if where == conversation_id:
                    assert messages.get(message_id) == text, "acknowledged and lost"
        assert not unique or len(set(messages.values())) == len(messages), "stored twice"
    return heads
