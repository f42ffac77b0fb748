"""Request and response: windows, cached and not, appends, and what the application before Swarm answered."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import asyncpg

from bench.fan_out import Wrong
from bench.peers import schema
from bench.programs import Program, peer, swarm
from bench.session import Session
from bench.table import Row, disturbed, median, ratios, spread

_MESSAGES = 5_000
_WINDOW = 50
# A window anywhere, so that no cache has it: what it costs to read and encode it is measured.
_NO_CACHE = {"SWARM_CACHE_BYTES": "0"}


def _conversation(program: Program) -> str:
    made: dict[str, Any] = program.ask("POST", "/api/conversations", {"title": "bench"})
    return str(made["id"])


def _fill(session: Session, program: Program, conversation: str, count: int) -> None:
    target = f"/api/conversations/{conversation}/messages"
    report = session.load.publish(
        program.port, target, "-m", count, "-c", 4, "-b", 100, "-J", "-M", "-s", 380, "-d", 600
    )
    if report["errors"] or report["accepted"] != count:
        raise Wrong(f"{program.name}: {report}")


def filled(session: Session, program: Program, count: int) -> str:
    """The id of a new conversation with so many messages."""
    conversation = _conversation(program)
    _fill(session, program, conversation, count)
    return conversation


async def _fill_peers(url: str, conversation: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(schema.DDL)
        await schema.fill(connection, conversation, _MESSAGES)
        await schema.vacuum(connection)
    finally:
        await connection.close()


class Asked:
    """One program's rounds."""

    def __init__(self, program: Program, target: str, *options: object) -> None:
        self.program = program
        self.target = target
        self.options = options
        self.rounds: list[dict[str, float]] = []

    def ask(self, session: Session, connections: int, seconds: float) -> None:
        watch, before = session.watch(self.program), self.program.cpu()
        report = session.load.http(self.program.port, self.target, "-c", connections, "-d", seconds, *self.options)
        cpu = self.program.cpu() - before
        if report["refused"] or report["broken"]:
            raise Wrong(f"{self.program.name}: {report}")
        self.rounds.append(
            {
                "per_s": report["per_s"],
                "p50_ms": report["ms_p50"],
                "p99_ms": report["ms_p99"],
                "cpu_ms": cpu / report["answers"] * 1e3,
                "client_cores": report["client_cpu_s"] / report["seconds"],
                "others": watch.stop(report["client_cpu_s"]),
            }
        )
        session.say(
            f"{self.program.name}: {report['per_s']:,.0f}/s, p50 {report['ms_p50']:.2f},"
            f" p99 {report['ms_p99']:.2f} ms, {self.rounds[-1]['cpu_ms']:.3f} CPU ms each"
        )

    def column(self, name: str) -> list[float]:
        return [found[name] for found in self.rounds]

    def row(self, work: str) -> Row:
        return Row(
            f"{work}: {self.program.name}",
            f"{spread(self.column('per_s'), '/s', 0)}, p50 {spread(self.column('p50_ms'), digits=2)},"
            f" p99 {spread(self.column('p99_ms'), 'ms', 2)}, {spread(self.column('cpu_ms'), 'CPU ms each', 3)}",
            note=disturbed(self.column("others")),
            raw={self.program.name: self.rounds},
        )


def windows(session: Session) -> Iterator[Row]:
    """The newest 50 of 5,000 messages, or any 50, by 16 connections; PostgreSQL."""
    with contextlib.ExitStack() as stack:
        url = session.postgres_url()
        ours = stack.enter_context(swarm(url, "Swarm, PostgreSQL, uncached", _NO_CACHE))
        conversation = _conversation(ours)
        _fill(session, ours, conversation, _MESSAGES)
        cached = stack.enter_context(swarm(url, "Swarm, PostgreSQL, validated"))
        by_hand = stack.enter_context(peer("by_hand", "aiohttp + asyncpg + msgspec", "--database-url", url))
        lite = stack.enter_context(swarm(session.sqlite_url(), "Swarm, SQLite, validated"))
        on_lite = _conversation(lite)
        _fill(session, lite, on_lite, _MESSAGES)
        peer_url, theirs = session.postgres_url(), str(uuid.uuid4())
        asyncio.run(_fill_peers(peer_url, theirs))
        flask = stack.enter_context(peer("flask_app", "Flask, SQLAlchemy ORM", "--database-url", peer_url))
        fastapi = stack.enter_context(peer("fastapi_app", "FastAPI, SQLAlchemy async", "--database-url", peer_url))
        _same(ours.ask("GET", f"/api/conversations/{conversation}/messages"), by_hand, conversation)
        anywhere = f"messages?from={{r}}&limit={_WINDOW}"
        spots = ("-r", _MESSAGES - _WINDOW)
        uncached = Asked(ours, f"/api/conversations/{conversation}/{anywhere}", *spots)
        hand = Asked(by_hand, f"/conversations/{conversation}/{anywhere}", *spots)
        # What a page of the chat asks for: some of a hundred windows, each asked for again and again.
        hot = f"messages?from={{r}}&limit={_WINDOW}"
        validated = Asked(cached, f"/api/conversations/{conversation}/{hot}", "-r", 100)
        on_sqlite = Asked(lite, f"/api/conversations/{on_lite}/{hot}", "-r", 100)
        old = Asked(flask, f"/conversations/{theirs}/messages?limit={_WINDOW}")
        other = Asked(fastapi, f"/conversations/{theirs}/messages?limit={_WINDOW}")
        asked = (uncached, hand, validated, on_sqlite, old, other)
        seconds = session.size(3, 1)
        for each in asked:
            session.load.http(each.program.port, each.target, "-c", 16, "-d", 1, *each.options)
        for _ in session.rounds(5):
            for each in asked:
                each.ask(session, 16, seconds)
    for each in asked:
        yield each.row(f"window of {_WINDOW}, 16 connections")
    found = ratios(uncached.column("cpu_ms"), hand.column("cpu_ms"))
    yield Row("… uncached ÷ by hand, CPU a request", spread(found, digits=2), "≤ 1.5", median(found) <= 1.5)
    for side, base, name, goal in (
        (uncached, old, "uncached ÷ Flask, requests/s", 7),
        (uncached, other, "uncached ÷ FastAPI, requests/s", 5),
        (validated, old, "validated ÷ Flask, requests/s", 15),
    ):
        found = ratios(side.column("per_s"), base.column("per_s"))
        yield Row(f"… {name}", spread(found), f"≥ {goal}", median(found) >= goal)
    rate = on_sqlite.column("per_s")
    yield Row("… validated a second on SQLite", spread(rate, digits=0), "≥ 5,000", median(rate) >= 5_000)


def _same(ours: dict[str, Any], by_hand: Program, conversation: str) -> None:
    """The peer must have done the same work."""
    theirs = by_hand.ask("GET", f"/conversations/{conversation}/messages?limit={_WINDOW}")
    if ours["items"] != theirs["items"] or ours["total"] != theirs["total"]:
        raise Wrong("the windows by hand are not those of Swarm")


def appends(session: Session) -> Iterator[Row]:
    """64 posters over HTTP, each message durable before it is acknowledged; PostgreSQL."""
    count = session.size(20_000, 4_000)
    for groups, goal in ((1, 4), (64, 3)):
        found: dict[str, list[dict[str, float]]] = {"Swarm": [], "a commit each": []}
        for _ in session.rounds(5):
            url = session.postgres_url()
            with swarm(url) as ours, peer("commit_each", "a commit each", "--database-url", url) as theirs:
                ids = ",".join(_conversation(ours) for _ in range(groups))
                for program, name, prefix in ((ours, "Swarm", "/api"), (theirs, "a commit each", "")):
                    watch, before = session.watch(ours, theirs), program.cpu()
                    report = session.load.publish(
                        program.port, f"{prefix}/conversations/{{i}}/messages", "-m", count, "-c", 64, "-M", "-I", ids
                    )
                    cpu = program.cpu() - before
                    if report["errors"] or report["accepted"] != count:
                        raise Wrong(f"{name}: {report}")
                    found[name].append(
                        {
                            "per_s": report["messages_per_s"],
                            "p99_ms": report["post_ms_p99"],
                            "cpu_ms": cpu / count * 1e3,
                            "others": watch.stop(report["client_cpu_s"]),
                        }
                    )
                    session.say(
                        f"{groups} conversations, {name}: {report['messages_per_s']:,.0f}/s,"
                        f" p99 {report['post_ms_p99']:.1f} ms, {cpu / count * 1e3:.3f} CPU ms each"
                    )
        columns = {name: {key: [each[key] for each in rounds] for key in rounds[0]} for name, rounds in found.items()}
        ours_, theirs_ = columns["Swarm"], columns["a commit each"]
        relative, p99 = ratios(ours_["per_s"], theirs_["per_s"]), ratios(ours_["p99_ms"], theirs_["p99_ms"])
        where = "one conversation" if groups == 1 else f"{groups} conversations"
        yield Row(
            f"64 posters, {where}: Swarm ÷ a commit each",
            f"{spread(relative)} ({spread(ours_['per_s'], digits=0)} and {spread(theirs_['per_s'], '/s', 0)});"
            f" p99 {spread(ours_['p99_ms'])} and {spread(theirs_['p99_ms'], 'ms')}",
            f"≥ {goal}, p99 lower",
            median(relative) >= goal and median(p99) < 1,
            disturbed([*ours_["others"], *theirs_["others"]]),
            dict(found),
        )


def promise(session: Session) -> Iterator[Row]:
    """What the application before promised to get: 30–50 % lower response times, 4 times the concurrency."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(swarm(session.postgres_url(), "Swarm"))
        conversation = _conversation(ours)
        _fill(session, ours, conversation, _MESSAGES)
        url, theirs = session.postgres_url(), str(uuid.uuid4())
        asyncio.run(_fill_peers(url, theirs))
        flask = stack.enter_context(peer("flask_app", "Flask", "--database-url", url))
        old = Asked(flask, f"/conversations/{theirs}/messages?limit={_WINDOW}")
        new = Asked(ours, f"/api/conversations/{conversation}/messages?limit={_WINDOW}")
        seconds = session.size(4, 1)
        for each in (old, new):
            session.load.http(each.program.port, each.target, "-c", 16, "-d", 1)
        for _ in session.rounds(5):
            old.ask(session, 16, seconds)
            new.ask(session, 16, seconds)
        lower = [1 - a / b for a, b in zip(new.column("p50_ms"), old.column("p50_ms"), strict=True)]
        yield old.row("the newest window, 16 connections")
        yield new.row("the newest window, 16 connections")
        yield Row(
            "… response time, how much lower",
            spread([each * 100 for each in lower], "%"),
            "≥ 85 %",
            median(lower) >= 0.85,
        )
        # At which concurrency Swarm is as slow as the old one is with 16 connections.
        bound, carried = median(old.column("p99_ms")), 16
        crowd = Asked(ours, new.target)
        for connections in (32, 64, 128, 256, 512):
            crowd.ask(session, connections, seconds)
            if crowd.rounds[-1]["p99_ms"] > bound:
                break
            carried = connections
        yield Row(
            "… concurrency at the same p99",
            f"{carried} connections instead of 16, p99 ≤ {bound:.0f} ms: {carried / 16:.0f} times",
            "≥ 8 times",
            carried >= 128,
            raw={"p99_ms": crowd.column("p99_ms")},
        )
