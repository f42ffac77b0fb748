"""Databases that are ready before they are asked for: PostgreSQL takes a fifth of a second to copy one, and as long to
drop it, so one is emptied and given to the next test where it is otherwise as it was made."""

from __future__ import annotations

import itertools
import queue
import threading
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql

from tests.postgres_server import PostgresServer

_AHEAD = 3  # that lie ready at first
_PATIENCE = 60.0  # seconds; one copy takes a fraction of one
_GROWN = 2 * 1024 * 1024  # bytes: what a test has filled may have other plans than what is new

# All that a test may have changed of a database and that does not go with its rows.
_SHAPE = """
SELECT
    (SELECT array_agg((c.oid::regclass::text, c.relkind, c.relpersistence, c.reloptions::text) ORDER BY c.oid::regclass::text)
     FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace)::text,
    (SELECT array_agg((attrelid::regclass::text, attnum, attname, atttypid, attnotnull) ORDER BY attrelid::regclass::text, attnum)
     FROM pg_attribute WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace))::text,
    (SELECT array_agg((indexrelid::regclass::text, indisvalid, indisready) ORDER BY indexrelid::regclass::text)
     FROM pg_index WHERE indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace))::text,
    (SELECT array_agg((oid::regprocedure::text, md5(prosrc), proconfig::text) ORDER BY oid::regprocedure::text)
     FROM pg_proc WHERE pronamespace = 'public'::regnamespace)::text,
    (SELECT array_agg((conrelid::regclass::text, conname, pg_get_constraintdef(oid)) ORDER BY conrelid::regclass::text, conname)
     FROM pg_constraint WHERE connamespace = 'public'::regnamespace)::text,
    (SELECT array_agg((tgrelid::regclass::text, tgname) ORDER BY tgname) FROM pg_trigger WHERE NOT tgisinternal)::text,
    (SELECT array_agg(nspname ORDER BY nspname) FROM pg_namespace)::text,
    (SELECT array_agg(extname ORDER BY extname) FROM pg_extension)::text,
    (SELECT array_agg(setconfig::text) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
     WHERE d.datname = current_database())::text
"""  # noqa: E501 (a query reads better in its own lines)
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
_OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"


class PreparedDatabases:
    """Databases like a template, made, emptied and dropped by a thread of its own. To be used as a context."""

    def __init__(self, server: PostgresServer, template: str) -> None:
        self._server = server
        self._template = template
        with psycopg.connect(server.url(template), autocommit=True) as connection:
            self._shape = connection.execute(_SHAPE).fetchone()
            tables = [row[0] for row in connection.execute(_TABLES)]
            contents = {table: _rows(connection, table) for table in tables}
            self._size = _size(connection)
        self._empty = [table for table, rows in contents.items() if not rows]
        self._filled = {table: rows for table, rows in contents.items() if rows}
        self._numbers = itertools.count()
        self._ready: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # what was given back; "" asks for one more
        self._thread = threading.Thread(target=self._run, name="prepare databases", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for _ in range(_AHEAD):
            self._work.put("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._work.put(None)
        self._thread.join(_PATIENCE)

    def take(self) -> str:
        """The name of one that is the caller's until it is given back."""
        if self._ready.empty():
            self._work.put("")
        taken = self._ready.get(timeout=_PATIENCE)
        if isinstance(taken, BaseException):
            raise taken
        return taken

    def give_back(self, name: str) -> None:
        """It is somebody else's some time soon, or dropped, whoever is still connected to it."""
        self._work.put(name)

    def _run(self) -> None:
        while (name := self._work.get()) is not None:
            try:
                if name and not self._emptied(name):
                    self._server.drop_database(name)
                    name = ""
                if not name:
                    name = f"test_{next(self._numbers)}"
                    self._server.create_database(name, self._template)
                self._ready.put(name)
            except Exception as error:
                self._ready.put(error)  # raised where the next one is asked for

    def _emptied(self, name: str) -> bool:
        """Makes it what it was; False where that is not done by removing rows."""
        try:
            with psycopg.connect(self._server.url(name), autocommit=True) as connection:
                connection.execute("SET lock_timeout = '2s'")
                connection.execute(_OTHERS, [name])
                with connection.transaction():
                    for table in self._empty:
                        connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
                return (
                    connection.execute(_SHAPE).fetchone() == self._shape
                    and all(_rows(connection, table) == rows for table, rows in self._filled.items())
                    and _size(connection) < self._size + _GROWN
                )
        except psycopg.Error:
            return False


def _rows(connection: psycopg.Connection[Any], table: str) -> list[Any]:
    return connection.execute(sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(sql.Identifier(table))).fetchall()


def _size(connection: psycopg.Connection[Any]) -> int:
    [[size]] = connection.execute("SELECT pg_database_size(current_database())").fetchall()
    return int(size)
