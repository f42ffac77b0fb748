"""The one door to the database: named operations, timed, with the drivers' errors translated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

import structlog
from sqlalchemy import QueuePool, text
from sqlalchemy.ext.asyncio import AsyncConnection

from metrics.operations import OperationObserver
from storage import migrate
from storage.config import StorageConfig
from storage.driver_errors import as_storage_error, without_values
from storage.engines import async_engine, sync_engine
from storage.errors import StatementFailed, StorageUnavailable
from storage.leases import Lease, Leases
from storage.statement import RawStatement, Statement

log = structlog.get_logger(__name__)

_READ_EPOCH = "SELECT epoch FROM timeline"
_EPOCH = RawStatement("timeline.epoch", postgresql=_READ_EPOCH, sqlite=_READ_EPOCH, parameters=[])

T = TypeVar("T")

_FIRST_RETRY, _LAST_RETRY = 0.2, 5.0  # seconds between attempts to reach a database that is not there yet

# Each read of SQLite's is a thread, and threads that make rows of the same interpreter's get in each other's way: five
# at once take twice as long for each row as one alone. One more than one, so that a long read holds up no short ones.
_SQLITE_READS = 2

# Acknowledged is durable, whatever the server's default is. It ends with the transaction.
_DURABLE = text(
    "SELECT set_config('synchronous_commit', 'on', true)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
)


class Database:
    """Both engines of one database, and whether it can be used yet.

    `epoch` names the log's timeline. It and `ready` are set by a task of `start`, which goes on trying until the
    database is there and its schema is current: the process serves meanwhile, and says so.
    """

    def __init__(self, config: StorageConfig, observer: OperationObserver) -> None:
        self.config = config
        self.dialect = config.url.dialect
        self.engine = async_engine(config)
        self.leases = Leases(self.engine, config.pool_size, config.pool_timeout)
        self.epoch = ""
        self.reason = "the database has not been reached yet"
        self.observer = observer
        self._ready = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._turns = asyncio.Semaphore(_SQLITE_READS)
        self._under_way: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to open the database. Never raises because it cannot be reached."""
        self._opening = asyncio.create_task(self._open(), name="open database")

    async def close(self) -> None:
        """Lets operations under way end, for as long as one statement may take, and closes all connections."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        try:
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=self.config.command_timeout)
        finally:
            await self.engine.dispose()

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    async def wait_until_ready(self) -> None:
        await self._ready.wait()

    async def _open(self) -> None:
        pause = _FIRST_RETRY
        while True:
            try:
                self.epoch = await asyncio.to_thread(migrate.upgrade, self.config)
            except Exception as error:
                self.reason = f"{type(error).__name__}: {error}".splitlines()[0]
                log.warning("database not ready", database=str(self.config.url), reason=self.reason, retry_in=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LAST_RETRY)
            else:
                self._ready.set()
                log.info("database ready", database=str(self.config.url), epoch=self.epoch)
                return

    async def refresh_epoch(self) -> str:
        """The epoch as it is now: `python -m storage new-epoch` may begin another under running servers."""
        [[self.epoch]] = await self.fetch(_EPOCH)
        return self.epoch

    def operation(self, name: str) -> _Operation:
        """Times what is done inside as `name`, and translates what the drivers raise. Every operation passes here.

        What is none of storage's errors is a `StatementFailed`: no driver's error gets out, for it quotes values.
        """
        return _Operation(self, name)

    def driver(self) -> _Driver:
        """The driver's own connection (asyncpg or aiosqlite) from the pool, outside any transaction."""
        return _Driver(self.leases)

    def to_its_end(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Carries `work` out in a task of its own, so that a client that goes away does not cancel it.

        A driver that is cancelled in the middle of an exchange leaves its connection in no state for the next one.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(_carry_out(work, answer))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return answer

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Any]:
        """The rows of one read, in one snapshot, as the driver gives them (both kinds can be unpacked and indexed)."""
        return await self.to_its_end(self.fetch_inside(statement, values))

    async def fetch_inside(self, statement: Statement, values: dict[str, Any]) -> Sequence[Any]:
        """The same for whoever is inside `to_its_end` already."""
        sql = statement.text(self.dialect)
        arguments = statement.arguments(self.dialect, values)
        rows: Sequence[Any]
        async with self.operation(statement.operation):
            if self.dialect == "sqlite":
                async with self._turn(), self.driver() as driver:
                    rows = await driver.execute_fetchall(sql, arguments)
            elif self.config.pgbouncer:
                async with self.driver() as driver, driver.transaction():
                    rows = await driver.fetch(sql, *arguments)
            else:
                async with self.driver() as driver:
                    rows = await driver.fetch(sql, *arguments)
            return rows

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of the few reads of SQLite that may be under way. Waits as long as for a connection."""
        try:
            async with asyncio.timeout(self.config.pool_timeout):
                await self._turns.acquire()
        except TimeoutError:
            raise StorageUnavailable("too many reads are waiting for the database") from None
        try:
            yield
        finally:
            self._turns.release()

    @asynccontextmanager
    async def transaction(self, operation: str) -> AsyncIterator[AsyncConnection]:
        """A read-write transaction of SQLAlchemy's, for what is rare. Rolled back when the block raises.

        Whoever may be cancelled uses it inside `to_its_end`.
        """
        async with self.operation(operation), self.engine.begin() as connection:
            if self.dialect == "postgresql":
                await connection.execute(_DURABLE)
            yield connection

    def connections_used(self) -> int:
        """Those of the pool that somebody holds at this moment."""
        return self._pool.checkedout()

    def connections_idle(self) -> int:
        """Those that the pool keeps for the next who asks."""
        return self._pool.checkedin()

    @property
    def _pool(self) -> QueuePool:
        assert isinstance(self.engine.pool, QueuePool)
        return self.engine.pool

    async def check(self, timeout: float) -> str:
        """`connected` when the asynchronous engine answers a query in `timeout` seconds, else why not. Never raises."""
        try:
            engine = self.engine.execution_options(only_reads=True)
            async with asyncio.timeout(timeout), engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except Exception as error:
            return _why(error)
        return "connected"

    async def check_synchronous(self, timeout: float) -> str:
        """The same through the synchronous engine."""

        def ask() -> None:
            engine = sync_engine(self.config).execution_options(only_reads=True)
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))

        try:
            # The thread cannot be stopped; its own connect timeout ends it.
            async with asyncio.timeout(timeout):
                await asyncio.to_thread(ask)
        except Exception as error:
            return _why(error)
        return "connected"


class _Operation:
    """See `Database.operation`. Written out: as generators, this and the next took a twentieth of a read's time."""

    __slots__ = ("_database", "_name", "_started")

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._started = 0.0

    async def __aenter__(self) -> None:
        if not self._database.ready:
            raise StorageUnavailable(self._database.reason)
        self._started = time.perf_counter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failure = None if error is None else type(error).__name__
        self._database.observer.observe(self._name, time.perf_counter() - self._started, failure)
        if error is not None:
            translated = as_storage_error(error)
            if translated is not None and translated is not error:
                raise translated from error
            said = without_values(error) if translated is None else None
            if said is not None:
                # Not even as its cause: whoever logs this would log that with it.
                raise StatementFailed(f"{self._name}: {said}") from None


class _Driver:
    """See `Database.driver`."""

    __slots__ = ("_lease", "_leases")

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._lease: Lease | None = None

    async def __aenter__(self) -> Any:
        self._lease = lease = await self._leases.acquire()
        return lease.driver

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease = self._lease
        assert lease is not None
        if isinstance(error, TimeoutError):
            # Of asyncpg's. It still waits for an answer, which may never come: the next one gets another connection.
            lease.driver.terminate()
        self._leases.release(lease, reusable=error is None)


async def _carry_out(work: Coroutine[Any, Any, T], answer: asyncio.Future[T]) -> None:
    """`answer` is there at once: `asyncio.shield` would take another turn of the loop. Who waits may have gone away."""
    try:
        result = await work
    except BaseException as error:
        if not answer.done():
            answer.set_exception(error)
        if not isinstance(error, Exception):
            raise
    else:
        if not answer.done():
            answer.set_result(result)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    translated = as_storage_error(error)
    return str(translated) if translated is not None else type(error).__name__
