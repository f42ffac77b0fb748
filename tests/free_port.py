"""A port of 127.0.0.1 that nobody listens on."""

import random
import socket
from pathlib import Path

_LOWEST = 20_000
_RANGE_OF_CLIENTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that was free a moment ago; by the time it is bound, it may not be.

    It lies below the ports that the kernel hands to clients. From among those, a port whose server is down
    for a moment (as ours are, in fault tests) can be given to a client's connection, even to the very client
    that tries to reach it, which then talks to itself and keeps the server from coming back.
    """
    for port in random.sample(range(_LOWEST, _first_port_of_clients()), k=100):
        if _is_free(port):
            return port
    raise RuntimeError("no free port found on 127.0.0.1 in 100 attempts")


def _first_port_of_clients() -> int:
    try:
        first = int(_RANGE_OF_CLIENTS.read_text().split()[0])
    except OSError:  # not Linux: the range that IANA sets apart for clients (RFC 6335 §6)
        first = 49_152
    # A machine that gives clients nearly all ports leaves no room below them: then any will have to do.
    return first if first > _LOWEST + 1_000 else 65_536


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        # As servers do: a port whose last connections linger in TIME_WAIT is free.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
