"""Straight to the socket: what is written to each of many streams must cost almost nothing besides the system call.

A transport's `write` is Python: it asks what it was given, whether it is closing, and whether it holds something. A
stream knows all that already (docs/performance.md has the figure).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from events.subscriber import Subscriber

NO_SOCKET = -1


def write_past(socket: int, data: bytes) -> bytes:
    """Writes what the socket takes at once, and returns the rest."""
    if socket == NO_SOCKET:
        return data
    try:
        return data[os.write(socket, data) :]
    except OSError:  # it is full, or broken: the transport meets the same, and knows what to do
        return data


def write_to_each(readers: Sequence[Subscriber], data: bytes) -> list[Subscriber]:
    """Writes to those whose stream has a socket of its own (see `Stream.socket`), and returns the others.

    What a socket does not take at once is left to its stream's transport, behind which everything else queues up.
    """
    write, size = os.write, len(data)
    others: list[Subscriber] = []
    for subscriber in readers:
        stream = subscriber.stream
        socket = stream.socket
        if socket < 0:
            others.append(subscriber)
            continue
        try:
            sent = write(socket, data)
        except OSError:
            sent = 0
        if sent != size:
            stream.write_behind(data[sent:])
    return others
