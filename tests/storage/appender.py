"""A process that appends until it is killed, and says what was acknowledged.

    python -m tests.storage.appender URL NAME WRITERS TURNS CONVERSATION…

Each writer posts messages of its own, one after the other, each under a key, and again until it is told 201. A line
of standard output is one acknowledgement: conversation, position, seq and content; the seq is `-` where the answer was
that of an earlier attempt. TURNS of 0 is for ever. It ends by itself when standard input does.
"""

import asyncio
import contextlib
import itertools
import sys

from storage.append import Append
from storage.errors import StorageUnavailable
from tests.storage.store import key, opened


async def main(url: str, name: str, writers: int, turns: int, conversations: list[str]) -> None:
    async with opened(url) as store:

        async def write(number: int) -> None:
            for turn in range(turns) if turns else itertools.count():
                content = f"{name}.{number}.{turn}"
                conversation = conversations[(number + turn) % len(conversations)]
                message = None
                while message is None:
                    try:
                        message = await store.post(conversation, content, key(content))
                    except StorageUnavailable:
                        await asyncio.sleep(0.02)
                identifier = message["id"]
                seq = next((str(seq) for append, seq, _ in store.committed if _creates(append, identifier)), "-")
                store.committed[:] = [line for line in store.committed if not _creates(line[0], identifier)]
                print(conversation, message["position"], seq, content, flush=True)

        writing = asyncio.gather(*map(write, range(writers)))
        # Nothing is ever said to it: its input is readable when its parent is gone.
        asyncio.get_running_loop().add_reader(sys.stdin, writing.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await writing


def _creates(append: Append, message_id: str) -> bool:
    return bool(append.messages) and append.messages[0].id == message_id


if __name__ == "__main__":
    url, name, writers, turns, *conversations = sys.argv[1:]
    asyncio.run(main(url, name, int(writers), int(turns), conversations))
