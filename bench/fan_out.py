"""Fan-out: messages posted over HTTP, received by a thousand subscribers, each committed before it is acknowledged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.peers import nchan
from bench.programs import Program, peer, swarm
from bench.session import Session
from bench.table import Row, disturbed, median, ratios, spread

_SUBSCRIBERS = 1_000


class Wrong(Exception):
    """A subscriber did not receive exactly every event: whatever was measured is void."""


@dataclass
class Side:
    """One server of a comparison, and what its rounds have found.

    `start` gives a running server, where to publish and where to subscribe; `options` are the publisher's.
    """

    name: str
    start: Callable[[], contextlib.AbstractContextManager[tuple[Program, str, str]]]
    options: tuple[object, ...] = ()
    subscriber: tuple[object, ...] = ()
    rounds: list[dict[str, float]] = field(default_factory=list)

    def column(self, name: str) -> list[float]:
        return [found[name] for found in self.rounds]


def swarm_side(session: Session, database: str, **environment: str) -> Side:
    @contextlib.contextmanager
    def start() -> Iterator[tuple[Program, str, str]]:
        with swarm(session.url(database), environment=environment) as program:
            conversation = program.ask("POST", "/api/conversations", {"title": "bench"})["id"]
            path = f"/api/conversations/{conversation}"
            yield program, f"{path}/messages", f"{path}/events"

    name = "Swarm, PostgreSQL" if database == "postgresql" else "Swarm, SQLite"
    # Each subscriber's seqs are looked at, too: the peers number nothing themselves.
    return Side(name, start, ("-M",), ("-x", "message.created", "-q", "seq"))


def peer_side(module: str, name: str, *options: str) -> Side:
    @contextlib.contextmanager
    def start() -> Iterator[tuple[Program, str, str]]:
        with peer(module, name, *options) as program:
            yield program, "/publish", "/events"

    return Side(name, start)


def nchan_sides(session: Session) -> list[Side]:
    """nchan's side, or none where it cannot run."""
    missing = nchan.available()
    if missing is not None:
        session.say(f"without nchan: {missing}")
        return []
    return [peer_side("nchan", "nchan", "--folder", session.new_folder())]


def measure(
    session: Session,
    side: Side,
    messages: int,
    *publisher: object,
    subscribers: int = _SUBSCRIBERS,
    at_most: float = 60.0,
    may_lag: bool = False,
) -> None:
    """One round. `at_most` are seconds; a server that `may_lag` need not have delivered all by then."""
    with side.start() as (program, publish, subscribe):
        options = ("-n", subscribers, "-e", messages, "-d", at_most, *side.subscriber)
        with session.load.streams(program.port, subscribe, *options) as streams:
            watch, before = session.watch(program), program.cpu()
            posted = session.load.publish(program.port, publish, "-m", messages, *publisher, *side.options)
            received = streams.report()
            cpu = program.cpu() - before
            clients = posted["client_cpu_s"] + received["client_cpu_s"]
            others = watch.stop(clients)
    exact = received["events_per_conn_min"] == received["events_per_conn_max"] == messages
    if received["gaps"] or received["repeats"] or (not exact and not may_lag) or posted["errors"]:
        raise Wrong(f"{side.name}: {_brief(received)}, {_brief(posted)}")
    latency = received["latency_ms"]
    side.rounds.append(
        {
            "events_per_s": received["events_per_s"],
            "p50_ms": latency["p50"],
            "p99_ms": latency["p99"],
            "cpu_s_per_million": cpu / received["events"] * 1e6,
            "cores": cpu / received["run_s"],
            "client_cores": clients / received["run_s"],
            "post_p50_ms": posted["post_ms_p50"],
            "post_p99_ms": posted["post_ms_p99"],
            "delivered": received["events"] / (messages * subscribers),
            "others": others,
        }
    )
    session.say(
        f"{side.name}: {received['events_per_s']:,.0f} events/s, p50 {latency['p50']:.1f}, p99 {latency['p99']:.1f} ms,"
        f" {cpu / received['events'] * 1e6:.2f} CPU s/M, {cpu / received['run_s']:.2f} cores"
    )


def _brief(report: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in report.items() if value and key != "latency_ms")


def _notes(*sides: Side) -> str:
    others = [value for side in sides for value in side.column("others")]
    clients = max(value for side in sides for value in side.column("client_cores"))
    return "; ".join(filter(None, [f"clients at most {clients:.2f} cores", disturbed(others)]))


def _raw(*sides: Side) -> dict[str, Any]:
    return {side.name: side.rounds for side in sides}


def burst(session: Session) -> Iterator[Row]:
    """As fast as 16 publishers are answered."""
    ours = [swarm_side(session, "postgresql"), swarm_side(session, "sqlite")]
    theirs = nchan_sides(session)
    slow = [peer_side("aiohttp_sse", "aiohttp-sse"), peer_side("starlette_sse", "sse-starlette")]
    messages = session.size(500, 100)
    for number in session.rounds(5):
        for side in (*ours, *theirs, *(slow if number < 3 else ())):
            measure(session, side, messages, "-c", 16, at_most=120)
    for side in (*ours, *theirs, *slow):
        yield Row(
            f"burst of {messages} to {_SUBSCRIBERS:,}: {side.name}",
            f"{spread(side.column('events_per_s'), 'events/s', 0)}, p99 {spread(side.column('p99_ms'), 'ms')},"
            f" {spread(side.column('cpu_s_per_million'), 'CPU s/M', 2)}",
            note=_notes(side),
            raw=_raw(side),
        )
    for nchan_side in theirs:
        for side, goal in zip(ours, (7, 5), strict=True):
            found = ratios(side.column("events_per_s"), nchan_side.column("events_per_s"))
            yield Row(f"{side.name} ÷ nchan, events/s", spread(found), f"≥ {goal}", median(found) >= goal)
        found = ratios(ours[0].column("p99_ms"), nchan_side.column("p99_ms"))
        yield Row(f"{ours[0].name} ÷ nchan, p99", spread(found, digits=2), "≤ 0.33", median(found) <= 1 / 3)
    rounds = len(slow[0].rounds)
    found = ratios(ours[0].column("events_per_s")[:rounds], slow[0].column("events_per_s"))
    yield Row(f"{ours[0].name} ÷ aiohttp-sse, events/s", spread(found), "≥ 30", median(found) >= 30)
    cpu = ours[0].column("cpu_s_per_million")
    yield Row("CPU seconds per million deliveries in the burst", spread(cpu, digits=2), "≤ 2.0", median(cpu) <= 2.0)


def steady(session: Session) -> Iterator[Row]:
    """A million deliveries a second asked for."""
    seconds = session.size(10, 3)
    side, theirs = swarm_side(session, "postgresql"), nchan_sides(session)
    for _ in session.rounds(3):
        measure(
            session, side, 1_000 * seconds, "-r", 1_000, "-c", 16, "-b", 10, "-J", may_lag=True, at_most=seconds + 5
        )
        for other in theirs:
            measure(session, other, 1_000 * seconds, "-r", 1_000, "-c", 16, may_lag=True, at_most=seconds + 5)
    for each in (side, *theirs):
        keeps_up = min(each.column("delivered")) == 1.0 and median(each.column("p99_ms")) < 1_000
        p99 = each.column("p99_ms")
        work = f"1,000 messages/s{' in arrays of 10' if each is side else ''} to {_SUBSCRIBERS:,}: {each.name}"
        yield Row(
            work,
            f"{'keeps up' if keeps_up else 'falls behind'},"
            f" {spread(each.column('events_per_s'), 'events/s', 0)},"
            f" p50 {spread(each.column('p50_ms'))}, p99 {spread(p99, 'ms')},"
            f" {spread(each.column('cores'), 'cores', 2)}",
            "keeps up, p99 ≤ 50 ms" if each is side else "",
            keeps_up and median(p99) <= 50 if each is side else None,
            _notes(each),
            _raw(each),
        )


def single(session: Session) -> Iterator[Row]:
    """One message at a time, nothing to put together."""
    seconds = session.size(5, 2)
    side, theirs = swarm_side(session, "postgresql"), nchan_sides(session)
    for _ in session.rounds(7):
        for each in (side, *theirs):
            measure(session, each, 100 * seconds, "-r", 100, "-c", 4)
    for each in (side, *theirs):
        yield Row(
            f"100 messages/s to {_SUBSCRIBERS:,}: {each.name}",
            f"p50 {spread(each.column('p50_ms'))}, p99 {spread(each.column('p99_ms'), 'ms')},"
            f" {spread(each.column('cpu_s_per_million'), 'CPU s/M', 2)}",
            note=_notes(each),
            raw=_raw(each),
        )
    for other in theirs:
        for column, name, most in (
            ("p99_ms", "p99", 1.0),
            ("p50_ms", "p50", 1.1),
            ("cpu_s_per_million", "CPU s/M", 1.0),
        ):
            found = ratios(side.column(column), other.column(column))
            yield Row(
                f"… {side.name} ÷ nchan, {name}, pair by pair",
                spread(found, digits=2),
                f"≤ {most}",
                median(found) <= most,
            )
