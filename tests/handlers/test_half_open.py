"""Half-open connections: the client's machine has lost its network or its power, and nobody says so."""

import asyncio
import ctypes
import socket
import struct
import sys
import time

import pytest

from handlers.resources import HUB
from tests.api import Client, new_conversation, post_messages
from tests.sse_reader import SseReader

SEND_TIMEOUT = 2.0
PING = 1
# The kernel looks whenever it sends again. Without TCP_USER_TIMEOUT it would do so for a quarter of an hour.
NOTICED = 15.0

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_BPF_RET = 0x06


@pytest.fixture
def environment() -> dict[str, str]:
    return {"SWARM_STREAM_PING": str(PING), "SWARM_STREAM_SEND_TIMEOUT": str(SEND_TIMEOUT)}


def fall_silent(connection: socket.socket) -> None:
    """From now on all that arrives at the socket is lost before its kernel sees it: nothing is acknowledged any more.

    A filter that accepts no byte of any packet (socket(7)); whoever owns the socket may attach it.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(drop_all))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's socket filters and TCP_USER_TIMEOUT")
@pytest.mark.parametrize("target", ["/api/conversations/{id}/events", "/api/events?conversations={id}&feed=true"])
async def test_a_reader_whose_machine_is_gone_is_noticed_and_others_stay(client: Client, target: str) -> None:
    conversation_id = await new_conversation(client)
    path = target.replace("{id}", conversation_id)
    hub = client.app[HUB]
    assert client.port is not None
    async with (
        SseReader(client.host, client.port, path) as alive,
        SseReader(client.host, client.port, path) as lost,
    ):
        for reader in (alive, lost):
            await reader.until("ready")
        assert hub.streams == 2
        connection = lost._sink.get_extra_info("socket")
        fall_silent(connection)
        begun = time.monotonic()
        async with asyncio.timeout(NOTICED):
            while hub.streams == 2:
                # Pings are all that is written to it: a quiet stream must be noticed, too.
                await asyncio.sleep(0.05)
        # Not before its time: a network may be away for a moment.
        assert time.monotonic() - begun >= SEND_TIMEOUT * 0.9
        [conversation] = hub.channels.values()
        assert len(conversation.live) + len(conversation.behind) == 1
        await post_messages(client, conversation_id, 1)
        while (frame := await alive.event()).event != "message.created":
            pass
        assert frame.json["seq"] == 1
