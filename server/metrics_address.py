"""The address of its own that `/metrics` may have."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

from server.setting import HOST, SettingError

_PARTS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class MetricsAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_metrics_address(text: str) -> MetricsAddress:
    """Raises `ValueError`."""
    found = _PARTS.fullmatch(text)
    if found is None or not 1 <= int(found["port"]) <= 65_535:
        raise ValueError
    return MetricsAddress(HOST.read(found["v6"] or found["host"]), int(found["port"]))


def listening_socket(address: MetricsAddress, *, shared: bool) -> socket.socket:
    """A socket that listens there; several processes have one each where it is `shared`. Raises `SettingError`."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(place)
            made.listen(128)
        except OSError:
            made.close()
            raise
    except OSError as error:
        known = error.errno is not None and error.errno > 0
        reason = os.strerror(error.errno or 0).lower() if known else "there is no such host"
        raise SettingError(f"Cannot listen on {address} (SWARM_METRICS_ADDRESS): {reason}.") from None
    return made
