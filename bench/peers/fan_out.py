"""What the two fan-out peers in Python share: the subscribers' queues, and taking a request apart into messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator


class Subscribers:
    """A queue each. They have no bound: nobody is dropped during a burst, as no subscriber of Swarm's is."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[str]] = set()

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Queue[str]]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    def publish(self, message: str) -> None:
        for queue in self._queues:
            queue.put_nowait(message)


def messages_of(content_type: str, body: bytes) -> list[str]:
    """One for each line of NDJSON or element of an array; any other body is one, as it came."""
    text = body.decode()
    if content_type.startswith("application/x-ndjson"):
        return [line for line in text.splitlines() if line]
    if text.lstrip().startswith("["):
        return [json.dumps(element, separators=(",", ":")) for element in json.loads(text)]
    return [text]
