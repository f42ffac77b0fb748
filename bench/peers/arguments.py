"""The command line that all peers have."""

from __future__ import annotations

import argparse


def parse(description: str | None) -> argparse.Namespace:
    """`port`, `database_url` (PostgreSQL), and `pool`, the connections to it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database-url", default="")
    parser.add_argument("--pool", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()
