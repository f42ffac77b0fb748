"""Streams beyond the plain fan-out: tokens, idle ones, very many, late ones, two workers."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

from bench import fan_out
from bench.machine import ALL_CORES
from bench.programs import Program, running, swarm
from bench.session import Session
from bench.table import Row, disturbed, median, ratios, spread
from events.config import StreamConfig
from tests.valkey_server import ValkeyServer

_TICK = int(StreamConfig().delta_gap * 1_000)


def tokens(session: Session) -> Iterator[Row]:
    """Eight streamed messages of one conversation at once, 50 tokens a second each."""
    seconds = session.size(10, 3)
    count = 8 * 50 * seconds
    found: list[dict[str, float]] = []
    for _ in session.rounds(3):
        with swarm(session.postgres_url()) as program:
            path = _conversation(program)
            ids = [
                program.ask(
                    "POST", f"{path}/messages", {"role": "agent", "agent_id": "general_01", "status": "streaming"}
                )["id"]
                for _ in range(8)
            ]
            # A token's text holds the time at which it was due, as JSON in JSON: hence the backslash.
            options = ("-n", 1_000, "-e", count, "-d", seconds + 20, "-x", "message.delta", "-t", "t\\", "-q", "seq")
            with session.load.streams(program.port, f"{path}/events", *options) as streams:
                watch, before = session.watch(program), program.cpu()
                target = "/api/messages/{i}/deltas"
                posted = session.load.publish(
                    program.port, target, "-m", count, "-r", 400, "-c", 8, "-T", "-I", ",".join(ids), "-s", 100
                )
                received = streams.report()
                cpu = program.cpu() - before
                clients = posted["client_cpu_s"] + received["client_cpu_s"]
                others = watch.stop(clients)
        if received["gaps"] or received["repeats"] or received["events_per_conn_min"] != count or posted["errors"]:
            raise fan_out.Wrong(f"tokens: {received}, {posted}")
        latency = received["latency_ms"]
        found.append(
            {
                "p50_ms": latency["p50"],
                "p99_ms": latency["p99"],
                "cores": cpu / received["run_s"],
                "cpu_s_per_million": cpu / received["events"] * 1e6,
                "others": others,
            }
        )
        session.say(
            f"tokens: p50 {latency['p50']:.1f}, p99 {latency['p99']:.1f} ms, {cpu / received['run_s']:.2f} cores"
        )
    p99, cores = [each["p99_ms"] for each in found], [each["cores"] for each in found]
    yield Row(
        "8 streamed messages at 50 tokens/s each, 1,000 subscribers, PostgreSQL",
        f"p99 {spread(p99, 'ms')}, {spread(cores, 'cores', 2)},"
        f" {spread([each['cpu_s_per_million'] for each in found], 'CPU s/M', 2)}",
        f"keeps up at ≤ 0.35 cores, p99 ≤ 60 ms plus the tick of {_TICK} ms",
        median(p99) <= 60 + _TICK and median(cores) <= 0.35,
        disturbed([each["others"] for each in found]),
        {"rounds": found},
    )


def idle(session: Session) -> Iterator[Row]:
    """What a stream costs that gets nothing, and what the server itself takes."""
    count = session.size(10_000, 2_000)
    sides = [fan_out.swarm_side(session, "sqlite"), *fan_out.nchan_sides(session)]
    per_stream: dict[str, list[float]] = {side.name: [] for side in sides}
    bases: list[float] = []
    for _ in session.rounds(3):
        for side in sides:
            with side.start() as (program, _, subscribe):
                # What is made once, and what the start has left free, is no part of what each costs: so the difference
                # between few and many.
                some = ("-n", count // 5, "-d", 60, "-i")
                more = ("-n", count - count // 5, "-d", 60, "-i")
                base = program.resident()
                with session.load.streams(program.port, subscribe, *some):
                    time.sleep(3.0)
                    before = program.resident()
                    with session.load.streams(program.port, subscribe, *more):
                        time.sleep(3.0)
                        loaded = program.resident()
                each = (loaded - before) / (count - count // 5) / 1024
                per_stream[side.name].append(each)
                if side is sides[0]:
                    bases.append(base / 2**20)
                session.say(f"{side.name}: {each:.1f} KB a stream, base {base / 2**20:.0f} MB")
    for side in sides:
        yield Row(
            f"{count:,} idle streams: {side.name}",
            spread(per_stream[side.name], "KB each"),
            raw={"kb": per_stream[side.name]},
        )
    for side in sides[1:]:
        found = ratios(per_stream[sides[0].name], per_stream[side.name])
        yield Row("… Swarm ÷ nchan, memory", spread(found, digits=2), "≤ 1", median(found) <= 1)
    yield Row("the server's own memory", spread(bases, "MB", 0), "≤ 110 MB", median(bases) <= 110, raw={"mb": bases})


def many(session: Session) -> Iterator[Row]:
    """The same deliveries to 1,000 streams, alone and beside 9,000 of other conversations."""
    seconds = session.size(10, 3)
    alone: list[float] = []
    among: list[float] = []
    notes: list[float] = []
    for _ in session.rounds(3):
        for groups, found in ((100, alone), (session.size(1_000, 200), among)):
            with swarm(session.postgres_url()) as program:
                ids = [_conversation(program).rpartition("/")[2] for _ in range(groups)]
                target = "/api/conversations/{i}/events"
                with contextlib.ExitStack() as stack:
                    # Ten streams each; the ids are given in lists that a command line holds.
                    for first in range(0, groups, 100):
                        part = ids[first : first + 100]
                        options = ("-n", 1_000, "-d", seconds + 60, "-I", ",".join(part), "-x", "message.created")
                        stack.enter_context(session.load.streams(program.port, target, *options))
                    time.sleep(2.0)
                    watch, before, begun = session.watch(program), program.cpu(), time.monotonic()
                    posted = session.load.publish(
                        program.port,
                        "/api/conversations/{i}/messages",
                        *("-m", 100 * seconds, "-r", 100, "-c", 10, "-I", ",".join(ids[:100]), "-M"),
                    )
                    time.sleep(0.5)
                    cpu, span = program.cpu() - before, time.monotonic() - begun
                    notes.append(watch.stop(posted["client_cpu_s"]))
                found.append(cpu / span)
                session.say(f"{groups * 10:,} streams: {cpu / span:.3f} cores")
    found = ratios(among, alone)
    yield Row(
        "10,000 streams in 1,000 conversations ÷ 1,000 streams, CPU for the same deliveries",
        f"{spread(found, digits=2)} ({spread(alone, 'cores', 3)} → {spread(among, 'cores', 3)})",
        "≤ 1.2",
        median(found) <= 1.2,
        note=disturbed(notes),
        raw={"alone": alone, "among": among},
    )


def resume(session: Session) -> Iterator[Row]:
    """A reader comes back after 10,000 events, beside 500 that are served meanwhile."""
    missed = session.size(10_000, 2_000)
    for database in ("postgresql", "sqlite"):
        times: list[float] = []
        calm: list[float] = []
        beside: list[float] = []
        with swarm(session.url(database)) as program:
            path, other = _conversation(program), _conversation(program)
            session.load.publish(program.port, f"{path}/messages", "-m", missed, "-c", 8, "-b", 100, "-J", "-M")
            for _ in session.rounds(7):
                for kept, resumes in ((calm, False), (beside, True)):
                    options = ("-n", 500, "-e", 200, "-d", 30, "-x", "message.created", "-q", "seq")
                    with session.load.streams(program.port, f"{other}/events", *options) as streams:
                        publisher = session.load.begin_publishing(
                            program.port, f"{other}/messages", "-m", 200, "-r", 100, "-M"
                        )
                        if resumes:
                            time.sleep(0.5)
                            times.append(_resumed(session, program, path, missed))
                        publisher.report()
                        kept.append(streams.report()["latency_ms"]["p99"])
            session.say(f"resume, {database}: {spread(times, 'ms', 0)}, others' p99 {spread(calm)} → {spread(beside)}")
        # "Unharmed": within what one round differs from the next.
        harmed = median(beside) > max(*calm, median(calm) * 1.25) + 5
        yield Row(
            f"resume after {missed:,} missed events, {database}",
            f"the last one after {spread(times, 'ms', 0)}; others' p99 {spread(calm)} → {spread(beside, 'ms')}",
            "≤ 150 ms, others unharmed",
            median(times) <= 150 and not harmed,
            raw={"ms": times, "p99_before": calm, "p99_beside": beside},
        )


def _resumed(session: Session, program: Program, path: str, missed: int) -> float:
    options = ("-n", 1, "-e", missed, "-d", 30, "-x", "message.created", "-q", "seq", "-t", "")
    with session.load.streams(program.port, f"{path}/events?after=0", *options) as streams:
        received = streams.report()
    if received["events"] != missed or received["gaps"] or received["repeats"]:
        raise fan_out.Wrong(f"resume: {received}")
    return float(received["last_event_ms"])


def workers(session: Session) -> Iterator[Row]:
    """Deliveries per CPU second of two workers with a doorbell between them, and of one alone."""
    seconds = session.size(8, 3)
    found: dict[int, list[float]] = {1: [], 2: []}
    with ValkeyServer() as valkey:
        for _ in session.rounds(5):
            for count in (1, 2):
                with _deployed(session.postgres_url(), valkey.url, count) as program:
                    path = _conversation(program)
                    options = (
                        "-n",
                        1_000,
                        "-e",
                        200 * seconds,
                        "-d",
                        seconds + 20,
                        "-x",
                        "message.created",
                        "-q",
                        "seq",
                    )
                    with session.load.streams(program.port, f"{path}/events", *options) as streams:
                        before = program.cpu()
                        session.load.publish(
                            program.port, f"{path}/messages", "-m", 200 * seconds, "-r", 200, "-c", 8, "-M"
                        )
                        received = streams.report()
                        cpu = program.cpu() - before
                if received["events_per_conn_min"] != 200 * seconds or received["gaps"] or received["repeats"]:
                    raise fan_out.Wrong(f"{count} workers: {received}")
                found[count].append(received["events"] / cpu)
                session.say(f"{count} workers: {received['events'] / cpu:,.0f} deliveries a CPU second")
    relative = ratios(found[2], found[1])
    yield Row(
        "two workers with Redis ÷ one, deliveries per CPU second",
        f"{spread(relative, digits=2)} ({spread(found[1], digits=0)} → {spread(found[2], digits=0)})",
        "≥ 0.85",
        median(relative) >= 0.85,
        raw={"one": found[1], "two": found[2]},
    )


@contextlib.contextmanager
def _deployed(url: str, redis: str, count: int) -> Iterator[Program]:
    import sys

    command = [sys.executable, "-m", "gunicorn", "--config", "server/gunicorn_conf.py"]
    environment = {
        "HOST": "127.0.0.1",
        "PORT": "{port}",
        "DATABASE_URL": url,
        "REDIS_URL": redis,
        "WEB_CONCURRENCY": str(count),
    }
    with running(f"{count} workers", command, environment, cores=ALL_CORES) as program:
        yield program


def _conversation(program: Program) -> str:
    made: dict[str, Any] = program.ask("POST", "/api/conversations", {"title": "bench"})
    return f"/api/conversations/{made['id']}"


def start(session: Session) -> Iterator[Row]:
    """From the process's start to its first 200, on a database that is there already."""
    for database in ("sqlite", "postgresql"):
        url = session.url(database)
        with swarm(url) as program:
            _conversation(program)
        times: list[float] = []
        for _ in session.rounds(7):
            begun = time.monotonic()
            with swarm(url):
                times.append(time.monotonic() - begun)
        yield Row(
            f"start to the first 200 on an existing database, {database}",
            spread(times, "s", 2),
            "≤ 1.5 s",
            statistics.median(times) <= 1.5,
            raw={"s": times},
        )
