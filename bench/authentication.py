"""What it costs that everybody says who they are: a server that asks for a credential beside one that does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench import fan_out
from bench.programs import Program, swarm
from bench.requests import Asked, filled
from bench.session import Session
from bench.table import Row, median, ratios, spread

_KEY = "a key of the bench's own, which opens nothing else"
_HEADER = f"Authorization: Bearer {_KEY}"
_ASKS = {"SWARM_BOOTSTRAP_KEY": _KEY}
_GOAL = 0.9
_MESSAGES = 5_000


@contextlib.contextmanager
def _asking(url: str, name: str, environment: dict[str, str] | None = None) -> Iterator[Program]:
    with swarm(url, name, {**_ASKS, **(environment or {})}) as program:
        program.headers["Authorization"] = f"Bearer {_KEY}"
        yield program


def authentication(session: Session) -> Iterator[Row]:
    """Windows and the burst on PostgreSQL, with a key and on a server that asks for none."""
    uncached = {"SWARM_CACHE_BYTES": "0"}
    for work, environment, places in (("uncached", uncached, _MESSAGES - 50), ("validated", {}, 100)):
        with contextlib.ExitStack() as stack:
            url = session.postgres_url()
            open_to_all = stack.enter_context(swarm(url, "without a key", environment))
            conversation = filled(session, open_to_all, _MESSAGES)
            asking = stack.enter_context(_asking(url, "with a key", environment))
            target = f"/api/conversations/{conversation}/messages?from={{r}}&limit=50"
            without = Asked(open_to_all, target, "-r", places)
            with_key = Asked(asking, target, "-r", places, "-h", _HEADER)
            for _ in session.rounds(7):
                for each in (without, with_key):
                    each.ask(session, 16, session.size(3, 1))
        yield _row(f"window of 50, {work}", with_key.column("per_s"), without.column("per_s"), "/s")
    sides = [_side(session, key=False), _side(session, key=True)]
    for _ in session.rounds(7):
        for side in sides:
            fan_out.measure(session, side, session.size(500, 100), "-c", 16, at_most=120)
    rates = [side.column("events_per_s") for side in sides]
    yield _row("burst of 500 to 1,000", rates[1], rates[0], " events/s")


def _row(work: str, with_key: list[float], without: list[float], unit: str) -> Row:
    relative = ratios(with_key, without)
    return Row(
        f"{work}, PostgreSQL: with a key ÷ without",
        f"{spread(relative, digits=2)} ({median(without):,.0f} → {median(with_key):,.0f}{unit})",
        f"≥ {_GOAL}",
        median(relative) >= _GOAL,
        raw={"with": with_key, "without": without},
    )


def _side(session: Session, *, key: bool) -> fan_out.Side:
    @contextlib.contextmanager
    def start() -> Iterator[tuple[Program, str, str]]:
        made = _asking if key else swarm
        with made(session.postgres_url(), "Swarm") as program:
            conversation = program.ask("POST", "/api/conversations", {"title": "bench"})["id"]
            path = f"/api/conversations/{conversation}"
            yield program, f"{path}/messages", f"{path}/events"

    options = ("-h", _HEADER) if key else ()
    name = "with a key" if key else "without a key"
    return fan_out.Side(name, start, ("-M", *options), ("-x", "message.created", "-q", "seq", *options))
