"""A process that shares its figures: it counts, says so, and waits to be ended.

Arguments: how many requests it answers, and how many streams it holds.
"""

import sys

from metrics.instruments import Instruments


def main(requests: int, streams: int) -> None:
    instruments = Instruments()
    for _ in range(requests):
        instruments.requests.answered("GET", "/api/agents", 200, 0.003)
    for _ in range(streams):
        instruments.streams.opened("conversation")
    instruments.streams.delivered("live", 10 * requests)
    instruments.database.limit.set(5)
    instruments.database.observe("messages.get", 0.001, "TimeoutError")
    print("counted", flush=True)
    sys.stdin.read()


main(*map(int, sys.argv[1:]))
