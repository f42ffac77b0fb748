"""The application: its settings, its resources in the order they start, its middlewares, its routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from aiohttp import web

from agents.registry import SHIPPED, Registry
from events.appending import Appending
from events.bus import Bus, NoBus
from events.conversation_log import ConversationLog
from events.hub import Hub
from events.idle_sweeper import IdleSweeper
from events.streamed_messages import StreamedMessages
from handlers.docs import DOCUMENTATION, Documentation
from handlers.health import VITALS, Vitals
from handlers.principal import AUTHENTICATION
from handlers.proxies import Proxies
from handlers.rate_counts import RateCounts
from handlers.rate_limits import RateLimits, say_standing
from handlers.resources import (
    CONVERSATIONS,
    CREDENTIALS,
    DATABASE,
    EXPOSITION,
    HUB,
    INSTRUMENTS,
    KEYS,
    LIVES,
    LOG,
    MESSAGES,
    METRICS_TOKEN,
    PROXIES,
    RATE_LIMITS,
    REGISTRY,
    REQUESTS,
    STREAMED,
    WINDOWS,
)
from handlers.route import Route
from metrics.exposition import Exposition, shared_folder
from metrics.instruments import Instruments
from metrics.operations import Observers
from metrics.pulse import Pulse
from server.auth.authentication import Authenticator
from server.auth.watch import AccessWatch
from server.config import Settings
from server.cors import Cors
from server.drain import DRAIN, Drain, end_connection
from server.errors import name_response
from server.guard import GUARD, Guard
from server.loopback import is_loopback
from server.metrics_site import metrics_site
from server.routes import public_routes
from server.slow_operations import SlowOperations
from storage.commit_postgresql import PostgresqlCommitter
from storage.commit_sqlite import SqliteCommitter
from storage.conversations import Conversations
from storage.credentials import Credentials
from storage.database import Database
from storage.group_commit import GroupCommit
from storage.housekeeping import Housekeeping
from storage.idempotency import Keys
from storage.log import Log
from storage.messages import Messages
from storage.statistics import Statistics
from storage.streaming import StreamingMessages
from storage.windows import Windows

if TYPE_CHECKING:
    from server.auth.jwt import JwtVerifier


def create_app(settings: Settings) -> web.Application:
    """The whole application. It serves before its database is there, and says so."""
    app = web.Application(client_max_size=settings.requests.max_body)
    app[REQUESTS] = settings.requests
    app[DRAIN] = Drain(settings.listen.drain)
    app[LIVES] = settings.lives
    instruments = app[INSTRUMENTS] = Instruments()
    app[EXPOSITION] = Exposition(instruments.registry, shared_folder())
    routes = public_routes(settings.edge)
    _guard(app, settings, routes)
    app.on_response_prepare.extend((name_response, end_connection))
    counts = RateCounts(settings.bus, instruments.limits)
    limits = app[RATE_LIMITS] = RateLimits(settings.rates, counts)
    if limits.counts_requests:
        app.on_response_prepare.append(say_standing)
    app.cleanup_ctx.append(_resources(settings, counts))
    app.on_shutdown.append(_drain)
    for route in routes:
        route.add_to(app)
    app[DOCUMENTATION] = Documentation(routes)
    return app


def _guard(app: web.Application, settings: Settings, routes: Sequence[Route]) -> None:
    """What is decided before anybody is asked who they are, and who is shown the figures."""
    edge = settings.edge
    confined = settings.open and not settings.listen.allow_unauthenticated
    proxies = app[PROXIES] = Proxies(edge.trusted_proxies)
    app[GUARD] = Guard(proxies, Cors(edge.cors_origins, routes), confined=confined)
    if edge.metrics_token is not None:
        app[METRICS_TOKEN] = edge.metrics_token
    if edge.metrics_address is not None:
        at_home = is_loopback(edge.metrics_address.host)
        app.cleanup_ctx.append(metrics_site(edge.metrics_address, confined=confined and at_home))


def _resources(settings: Settings, counts: RateCounts) -> Callable[[web.Application], AsyncIterator[None]]:
    """Starts in this order, and ends in the reverse."""

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            bounded = app[DRAIN].bounded
            instruments = app[INSTRUMENTS]
            observers = Observers(instruments.database, SlowOperations(settings.log.slow_operation))
            stack.push_async_callback(bounded, "rate counts", counts.close)
            await counts.start()

            database = app[DATABASE] = Database(settings.storage, observers)
            stack.push_async_callback(bounded, "database", database.close)
            await database.start()

            bus = _bus(settings)
            hub = app[HUB] = Hub(database, settings.stream, bus, instruments.streams)
            stack.push_async_callback(bounded, "hub", hub.close)
            await hub.start()

            commits = _group_commit(settings, database, hub, instruments)
            stack.push_async_callback(bounded, "commits", commits.close)
            await commits.start()

            pulse = Pulse(
                instruments.process,
                [
                    (instruments.database.used, database.connections_used),
                    (instruments.database.idle, database.connections_idle),
                    (instruments.database.limit, lambda: settings.storage.pool_size),
                    (instruments.commits.queue, commits.waiting),
                    (instruments.process.tasks, lambda: len(asyncio.all_tasks())),
                ],
            )
            stack.push_async_callback(bounded, "pulse", pulse.close)
            await pulse.start()

            credentials = app[CREDENTIALS] = Credentials(database)
            tokens = _tokens(settings)
            if tokens is not None:
                stack.push_async_callback(bounded, "tokens", tokens.close)
                await tokens.start()
            authentication = app[AUTHENTICATION] = Authenticator(
                settings.auth,
                credentials,
                tokens,
                app[RATE_LIMITS],
                instruments.authentication,
                open=settings.open,
                session_life=settings.lives.session_life,
                leeway=settings.jwt.leeway,
                issuers=settings.jwt.issuers,
                address=app[PROXIES].address,
                ended=hub.revoked,
            )
            hub.accesses.listener = authentication.heard_of
            watch = AccessWatch(hub.accesses, credentials, authentication.heard_of, settings.auth.recheck)
            stack.push_async_callback(bounded, "access watch", watch.close)
            await watch.start()

            housekeeping = Housekeeping(database)
            stack.push_async_callback(bounded, "housekeeping", housekeeping.close)
            await housekeeping.start()
            statistics = Statistics(database)
            stack.push_async_callback(bounded, "statistics", statistics.close)
            await statistics.start()

            appending = Appending(database, commits)
            streamed = app[STREAMED] = StreamedMessages(database, appending)
            idle_sweeper = IdleSweeper(StreamingMessages(database), streamed, settings.stream.idle)
            stack.push_async_callback(bounded, "idle_sweeper", idle_sweeper.close)
            await idle_sweeper.start()

            app[LOG] = ConversationLog(database, appending, frozenset(SHIPPED))
            app[CONVERSATIONS] = Conversations(database)
            app[MESSAGES] = Messages(database)
            app[WINDOWS] = Windows(database, instruments.cache)
            app[KEYS] = Keys(database)
            app[REGISTRY] = Registry(database)
            app[VITALS] = Vitals(database, bus)
            yield

    return resources


def _tokens(settings: Settings) -> JwtVerifier | None:
    if not settings.jwt.configured:
        return None
    from server.auth.jwks import fetch_by_http  # where no tokens are believed, nobody waits for cryptography
    from server.auth.jwt import JwtVerifier

    return JwtVerifier(settings.jwt, fetch_by_http)


def _bus(settings: Settings) -> Bus:
    if settings.bus.url is None:
        return NoBus()
    from events.redis_bus import RedisBus  # its client takes long to import

    return RedisBus(settings.bus)


def _group_commit(settings: Settings, database: Database, hub: Hub, instruments: Instruments) -> GroupCommit:
    """The hub is told of each commit before the client is."""
    if database.dialect == "postgresql":
        committer: PostgresqlCommitter | SqliteCommitter = PostgresqlCommitter(database)
        committers = settings.commit.committers
    else:
        committer, committers = SqliteCommitter(database), 1
    return GroupCommit(
        committer, Log(database), settings.commit, hub.publish, instruments.commits, committers=committers
    )


async def _drain(app: web.Application) -> None:
    """No new requests should come; streams end, so that their readers come back elsewhere."""
    app[VITALS].draining = True
    app[HUB].drain("shutdown")
