"""What the command lines of all peers have in common."""

from __future__ import annotations

import argparse
import contextlib
import resource

HOST = "127.0.0.1"
MOST_BYTES = 64 * 2**20  # of one request: a burst may come as one array


def parser(name: str, description: str | None, *, database: bool = False) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"python -m bench.peers.{name}", description=description)
    made.add_argument("--port", type=int, required=True)
    if database:
        made.add_argument("--database-url", required=True, metavar="postgresql://…")
    return made


def raise_descriptor_limit() -> int:
    """As many connections as this user may have, as an operator's unit file would say. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems' hard limit is more than their kernel takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft
