"""A database's backup, made and restored under running servers as an operator would."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from tests.server_process import ROOT

_PATIENCE = 30.0  # seconds that a step waits for whoever uses the database


class Backups(Protocol):
    """One backup at a time. Every method blocks, for a bounded time."""

    live: str
    """The address that the servers use."""
    kept: str
    """The address of the backup, once there is one."""

    def make(self) -> dict[str, int]:
        """Makes the backup; returns the last seq of each conversation in it."""

    def restore(self) -> None:
        """The live database becomes what the backup is, at once."""

    def close(self) -> None:
        """Removes what was made."""


def backups_of(database_url: str) -> Backups:
    """Those of this database."""
    made = SqliteBackups if database_url.startswith("sqlite") else PostgresBackups
    return made(database_url)


def new_epoch(database_url: str) -> str:
    """Runs `python -m storage new-epoch`; returns the epoch that it names."""
    done = subprocess.run(
        [sys.executable, "-m", "storage", "new-epoch"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=True,
        timeout=_PATIENCE,
    )
    return done.stdout.strip().rpartition(" ")[2].removesuffix(".")


class SqliteBackups:
    """By SQLite's own backup interface, which copies a database as one transaction sees it, into one transaction."""

    def __init__(self, database_url: str) -> None:
        self.live = database_url
        self._live = Path(database_url.removeprefix("sqlite:///"))
        self._kept = self._live.with_name("backup.db")
        self.kept = f"sqlite:///{self._kept}"

    def make(self) -> dict[str, int]:
        self.close()
        with closing(self._open(self._live)) as source, closing(self._open(self._kept)) as target:
            source.backup(target)
            return dict(target.execute("SELECT id, last_seq FROM conversations"))

    def restore(self) -> None:
        with closing(self._open(self._kept)) as source, closing(self._open(self._live)) as target:
            source.backup(target)

    def close(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._kept}{suffix}").unlink(missing_ok=True)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)


class PostgresBackups:
    """A copy of the database beside it, which takes its name in the end. Whoever is connected is cut."""

    def __init__(self, database_url: str) -> None:
        self.live = database_url
        self._live = urlsplit(database_url).path.removeprefix("/")
        self._kept, self._void = f"{self._live}_kept", f"{self._live}_void"
        self._server = database_url.removesuffix(self._live) + "postgres"
        self.kept = database_url.removesuffix(self._live) + self._kept

    def make(self) -> dict[str, int]:
        self._drop(self._kept)
        with self._connect(self._server) as server, self._alone(server):
            self._execute(server, "CREATE DATABASE {} TEMPLATE {}", self._kept, self._live)
        with self._connect(self.kept) as copy:
            return {str(name): seq for name, seq in copy.execute("SELECT id, last_seq FROM conversations").fetchall()}

    def restore(self) -> None:
        self._drop(self._void)
        with self._connect(self._server) as server:
            self._end_sessions(server, self._live)
            self._execute(server, "ALTER DATABASE {} RENAME TO {}", self._live, self._void)
            self._execute(server, "ALTER DATABASE {} RENAME TO {}", self._kept, self._live)
            self._execute(server, "ALTER DATABASE {} ALLOW_CONNECTIONS true", self._live)

    def close(self) -> None:
        self._drop(self._kept)
        self._drop(self._void)

    @contextlib.contextmanager
    def _alone(self, server: psycopg.Connection) -> Iterator[None]:
        """Nobody is connected meanwhile, which a template demands."""
        self._end_sessions(server, self._live)
        try:
            yield
        finally:
            self._execute(server, "ALTER DATABASE {} ALLOW_CONNECTIONS true", self._live)

    def _end_sessions(self, server: psycopg.Connection, name: str) -> None:
        self._execute(server, "ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
        # With a timeout each waits until the session has ended.
        server.execute(
            "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity WHERE datname = %s",
            (int(_PATIENCE * 1000), name),
        )

    def _drop(self, name: str) -> None:
        with self._connect(self._server) as server:
            self._execute(server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    @staticmethod
    def _connect(url: str) -> psycopg.Connection:
        return psycopg.connect(url, autocommit=True, connect_timeout=int(_PATIENCE))

    @staticmethod
    def _execute(server: psycopg.Connection, statement: str, *names: str) -> None:
        server.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
