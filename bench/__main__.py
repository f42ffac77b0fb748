"""`python -m bench [name …]`: all measurements, or those; one table, and `bench/results.json` beside it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import authentication, depth, fan_out, requests, streams, writes
from bench.session import Session, session
from bench.table import Row, as_markdown, save

Measurement = Callable[[Session], Iterator[Row]]

MEASUREMENTS: dict[str, Measurement] = {
    "burst": fan_out.burst,
    "steady": fan_out.steady,
    "single": fan_out.single,
    "tokens": streams.tokens,
    "idle": streams.idle,
    "many": streams.many,
    "windows": requests.windows,
    "depth": depth.depth,
    "appends": requests.appends,
    "commit": writes.commit,
    "imports": writes.imports,
    "resume": streams.resume,
    "workers": streams.workers,
    "start": streams.start,
    "promise": requests.promise,
    "authentication": authentication.authentication,
}


def main() -> int:
    """The exit code: 0 when every goal was met."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="one short round each, to see that it works")
    parser.add_argument("--json", type=Path, default=Path("bench/results.json"))
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"there is no measurement {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
    rows: list[Row] = []
    with session(quick=arguments.quick) as opened:
        for name in arguments.names or MEASUREMENTS:
            print(f"{name}: {(MEASUREMENTS[name].__doc__ or '').strip()}", file=sys.stderr, flush=True)
            rows += MEASUREMENTS[name](opened)
    save(rows, arguments.json)
    print(as_markdown(rows))
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
